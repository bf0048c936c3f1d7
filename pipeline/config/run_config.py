"""The run configuration: one YAML file for both phases; unknown keys are refused, all problems are listed at once."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from alignkd.disk.opening import open_regular_or_pipe
from alignkd.pipeline.config.problems import problem_of
from alignkd.pipeline.config.yaml_core import YamlTextError, parse_yaml
from alignkd.storage.codecs.settings import STEM
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.student_train.target_source import target_source
from alignkd.student_train.trained.settings import LoraSettings, TrainedConfig, TrainedKey, problem_of_keys
from alignkd.teacher_dump.config import TeacherConfig
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.vlm.errors import InputError, unreadable
from alignkd.vlm.hardware.devices import DtypeName, Quantization
from alignkd.vlm.settings import CheckpointName, Count, ProcessorKind, Settings, UserPath, described

Command = Literal["dump", "plan", "train", "run"]
MAX_FILE_BYTES = 1 << 20
SECTIONS_OF: dict[Command, tuple[str, ...]] = {
    "dump": ("data", "teacher", "store"),
    "plan": ("data", "teacher", "store"),
    "train": ("data", "student", "store", "train"),
    "run": ("data", "teacher", "student", "store", "train"),
}


class DataConfig(Settings):
    """The data set.

    Attributes:
        conversations: LLaVA-style JSON list, or JSON lines (`.jsonl`).
        images: folder to which image paths are relative; not needed for training from a store with `inputs: embed`,
            nor for data without images.
        template: prompt template of MobileVLM: `plain` (captions, pre-training) or `v1` (conversations, fine-tuning,
            the default). Other models take the chat template of their checkpoint and refuse this key.
        max_tokens: samples with more embedded tokens (text + vision) are dropped and listed; None sets no limit.
    """

    conversations: UserPath
    images: UserPath | None = None
    template: Literal["plain", "v1"] | None = None
    max_tokens: Count | None = 2048


class StudentConfig(Settings):
    """The student.

    Attributes:
        checkpoint: folder or hub id of an image-text-to-text model of transformers, or of MobileVLM.
        vision_config: MobileVLM: folder with the vision tower's config.json, overriding `mm_vision_tower`.
        processor: image processor of other models: `auto` takes the one that transformers selects, `pil` the one that
            needs no torchvision; its pixels differ slightly, so teacher and student must use the same.
        dtype: dtype of the weights in training; master weights and optimiser state are float32.
        trained: what is trained besides the adapters, never the vision tower: `all`; `projector`; `decoder` with
            embeddings and head, without the projector; a mapping `{layers: [from, to]}` of decoder layers; or `lora`.
            None is `lora` with a section `lora`, else `all`.
        lora: settings of LoRA.
        quantization: precision of the decoder's frozen linear layers with LoRA, by bitsandbytes: `int8` or `nf4`. The
            exported student has the precision of `dtype`.
    """

    checkpoint: CheckpointName
    vision_config: UserPath | None = None
    processor: ProcessorKind = "auto"
    dtype: DtypeName = "float32"
    trained: TrainedKey | None = None
    lora: LoraSettings | None = None
    quantization: Quantization = "none"

    @model_validator(mode="after")
    def _trained_keys_fit(self) -> Self:
        if (problem := problem_of_keys(self.trained, self.lora, self.quantization)) is not None:
            raise ValueError(problem)
        return self

    @property
    def trained_config(self) -> TrainedConfig:
        """The keys `trained`, `lora` and `quantization`, resolved."""
        return TrainedConfig(trained=self.trained, lora=self.lora, quantization=self.quantization)


class RunConfig(Settings):
    """All sections of a configuration file; each command needs only some of them (`SECTIONS_OF`)."""

    data: DataConfig
    teacher: TeacherConfig | None = None
    student: StudentConfig | None = None
    store: StoreConfig
    train: TrainConfig | None = None

    @model_validator(mode="after")
    def _losses_have_targets(self) -> Self:
        """Check before the teacher runs that each loss has a target, in a form that it can use."""
        if self.train is None:
            return self
        losses, targets = self.train.losses, self.train.targets
        weighed = losses.needed_targets
        problems = []
        if missing := [term for term, key in weighed.items() if self._is_missing(key)]:
            problems.append(
                f"train.losses weighs {', '.join(missing)}, but the store keeps no target for it; "
                "store the target or set the weight to 0"
            )
        problems += [
            f"train.targets.{key} is 'stored', but store.{key} is 'stem'; change one of them"
            for key in weighed.values()
            if key != "logits" and getattr(self.store, key) == "stem" and getattr(targets, key) == "stored"
        ]
        # without a teacher section, only the configuration that dumped the store may contain its kind of logits
        if self.teacher is not None or "logits" in self.store.model_fields_set:
            problems += [f"train.{problem}" for problem in losses.problems_with(self.store.logits.kind, "the store")]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _is_missing(self, key: str) -> bool:
        """Whether a target is neither stored nor computed from the teacher's stem."""
        assert self.train is not None
        if key == "logits":
            return self.store.logits.kind == "none"
        codec, chosen = getattr(self.store, key), getattr(self.train.targets, key)
        # a codec `stem` with targets `stored` is a problem of its own
        return codec != STEM and target_source(codec, chosen, has_stem=self.train.stem is not None) is None

    def dump_job(self) -> DumpJob:
        """The job of phase 1."""
        assert self.teacher is not None
        return DumpJob(
            conversations=self.data.conversations,
            images=self.data.images,
            template=self.data.template,
            max_tokens=self.data.max_tokens,
            teacher=self.teacher,
            store=self.store,
        )

    def train_job(self) -> TrainJob:
        """The job of phase 2."""
        assert self.student is not None and self.train is not None
        return TrainJob(
            student=self.student.checkpoint,
            vision_config=self.student.vision_config,
            processor=self.student.processor,
            dtype=self.student.dtype,
            images=self.data.images,
            template=self.data.template,
            max_tokens=self.data.max_tokens,
            trained=self.student.trained_config,
            store=self.store.path,
            train=self.train,
            configuration=self.model_dump(mode="json"),
        )


def load_run_config(path: Path, command: Command) -> RunConfig:
    """Read and check a configuration file of one stage for `command`; `recipes.py` reads files of several stages.

    Raises:
        InputError: one line with every problem of the file.
    """
    config, problems = checked_config(read_yaml(path), command)
    if config is None or problems:
        raise refusal(path, problems)
    return config


def checked_config(values: dict[str, Any], command: Command) -> tuple[RunConfig | None, list[str]]:
    """The configuration, None if it is invalid, and its problems."""
    missing = [section for section in SECTIONS_OF[command] if values.get(section) is None]
    problems = [
        f"{section}: section is {'empty' if section in values else 'missing'}, alignkd {command} needs it"
        for section in missing
    ]
    try:
        return RunConfig.model_validate(values), problems
    except ValidationError as error:
        listed = [
            problem_of(dict(item), RunConfig)
            for item in error.errors()
            if item["loc"][:1] not in {(m,) for m in missing}
        ]
        return None, problems + listed


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; docs/configuration.md describes the accepted YAML.

    Raises:
        InputError: the file does not exist, is too large, is not YAML or is not a mapping.
    """
    try:
        with open_regular_or_pipe(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise InputError(
                f"{path}: more than {MAX_FILE_BYTES >> 20} MiB, too large for a configuration; check the path"
            )
        values = parse_yaml(content.decode("utf-8-sig"))
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except YamlTextError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: contains {described(values)}, expected sections {', '.join(SECTIONS_OF['run'])}")
    return values


def refusal(path: Path, problems: list[str]) -> InputError:
    """One error for all problems of a file."""
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    return InputError(f"{path}: {count}: {'; '.join(problems)}")
