"""The run configuration: one YAML file for both phases; unknown keys are refused, all problems are listed at once."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from alignkd.disk.opening import open_regular_or_pipe
from alignkd.pipeline.config.problems import problem_of
from alignkd.pipeline.config.sections.eval_config import EvalConfig
from alignkd.pipeline.config.sections.store_list import ListedStores, listed_stores
from alignkd.pipeline.config.yaml_core import YamlTextError, parse_yaml
from alignkd.storage.codecs.settings import NONE, STEM, STEM_TARGETS
from alignkd.storage.schema.sources import MAX_ROLES, MAX_SYSTEM
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.vision import STATE_NORMS, VISION_STATES
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.term import Target
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.target_source import target_source
from alignkd.student_train.trained.settings import LoraSettings, TrainedConfig, TrainedKey, problem_of_keys
from alignkd.teacher_dump.generate.settings import GenerateConfig
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.data_list import data_set_names
from alignkd.vlm.data.source import Answers, DataSet
from alignkd.vlm.errors import InputError, unreadable
from alignkd.vlm.hardware.devices import DtypeName, Quantization
from alignkd.vlm.settings import CheckpointName, Count, Positive, ProcessorKind, Settings, UserPath, described

Command = Literal["dump", "eval", "generate", "layers", "plan", "train", "run"]
MAX_FILE_BYTES = 1 << 20
SECTIONS_OF: dict[Command, tuple[str, ...]] = {
    "dump": ("data", "teacher", "store"),
    "eval": ("data", "student", "store", "train"),
    "generate": ("data", "teacher", "generate"),
    "layers": ("data", "teacher"),
    "plan": ("data", "teacher", "store"),
    "train": ("data", "student", "store", "train"),
    "run": ("data", "teacher", "student", "store", "train"),
}
# `alignkd layers` writes no store; without the section, the codecs are the defaults
NO_STORE = {"path": os.devnull}
# keys of `data` that hold for all data sets of a list
SHARED_BY_DATA = ("template", "max_tokens")
DataName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=100), Field(title="name")
]


class DataConfig(Settings):
    """One data set. `data` is one such section, or a list of them, whose samples follow one another.

    Attributes:
        conversations: conversations as JSON list, JSON lines, Parquet or WebDataset tars: a file, a folder of files or
            a pattern such as `data/train-*.parquet`.
        images: folder to which image paths are relative; not needed for data without images or with images inside the
            files, nor for training from a store: null is the folder that the dump used, if it is still there.
        name: name of the data set in stores and metrics, each once; None makes one from the path.
        roles: name of a role in the data -> `human`, `gpt` or `system`, for names that are not known already.
        system: system prompt of samples that have none; None takes that of the template.
        answers: `missing`: questions may lack an answer, which `alignkd generate` writes; such samples get no targets.
        pairs: preference data: every entry has a `chosen` and a `rejected` answer to one question and is two samples.
            `train.preference` learns from them; losses on logits leave the rejected answers out.
        share: share of the samples that is taken, chosen by a hash of each index, so that the number is not exact.
        weight: how often training sees each sample per pass over the data.
        template: prompt template of MobileVLM: `plain` (captions, pre-training) or `v1` (conversations, fine-tuning,
            the default). Other models take the chat template of their checkpoint and refuse this key. One for all
            data sets of a list.
        max_tokens: samples with more embedded tokens (text + vision) are dropped and listed; None sets no limit. One
            for all data sets of a list.
    """

    conversations: UserPath
    images: UserPath | None = None
    name: DataName | None = None
    roles: dict[str, Literal["human", "gpt", "system"]] = Field(
        default_factory=dict, max_length=MAX_ROLES, title="names of roles"
    )
    system: str | None = Field(default=None, max_length=MAX_SYSTEM)
    answers: Answers = "given"
    pairs: bool = False
    share: float = Field(default=1.0, gt=0, le=1)
    weight: Positive = 1.0
    template: Literal["plain", "v1"] | None = None
    max_tokens: Count | None = 2048

    @model_validator(mode="after")
    def _pairs_have_answers(self) -> Self:
        if self.pairs and self.answers == "missing":
            raise ValueError("pairs is true, but answers is 'missing': pairs have both answers; set answers to given")
        return self

    @property
    def data_set(self) -> DataSet:
        """The data set as both phases take it."""
        return DataSet(
            path=self.conversations,
            images=self.images,
            name=self.name or "",
            roles=self.roles,
            system=self.system,
            answers=self.answers,
            pairs=self.pairs,
            share=self.share,
        )


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


class DataAndTeacher(Settings):
    """What all commands that run a teacher need."""

    data: tuple[DataConfig, ...]
    teacher: TeacherConfig | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """One section is a list of one; a key that holds for all data sets may be given in any of them."""
        if isinstance(value, dict | DataConfig):
            return (value,)
        if not isinstance(value, list | tuple) or not all(isinstance(entry, dict) for entry in value):
            return tuple(value) if isinstance(value, list) else value
        shared: dict[str, Any] = {}
        for key in SHARED_BY_DATA:
            given = [entry[key] for entry in value if key in entry]
            shared |= {key: given[0]} if given and all(other == given[0] for other in given) else {}
        return tuple({**shared, **entry} for entry in value)

    @field_validator("data")
    @classmethod
    def _agree(cls, data: tuple[DataConfig, ...]) -> tuple[DataConfig, ...]:
        """Check what holds for all data sets, and their names."""
        if not data:
            raise ValueError("an empty list, expected at least one data set")
        for key in SHARED_BY_DATA:
            given = {number: getattr(one, key) for number, one in enumerate(data) if key in one.model_fields_set}
            first = next(iter(given), 0)
            for number, found in given.items():
                if found != given[first]:
                    raise ValueError(
                        f"{key} is {given[first]!r} in data.{first} and {found!r} in data.{number}, expected one value "
                        "for all data sets; give it once"
                    )
        data_set_names([one.data_set for one in data])
        return data

    @property
    def data_sets(self) -> tuple[DataSet, ...]:
        """The data sets in order."""
        return tuple(one.data_set for one in self.data)

    @property
    def template(self) -> Literal["plain", "v1"] | None:
        """The prompt template of all data sets."""
        return self.data[0].template

    @property
    def max_tokens(self) -> int | None:
        """The longest sample of all data sets, in embedded tokens."""
        return self.data[0].max_tokens


# the key that stores the target of a term on states
_STORED_BY = {
    "relation": "store.vision_relations",
    "visual_logit": "store.vision_states",
    "nd": "store.state_norms",
    "vsd": "store.vision_states",
    "vlad": "store.vision_text_affinity",
    "vision_matching": "store.vision_states",
}


class RunConfig(DataAndTeacher):
    """All sections of a configuration file; each command needs only some of them (`SECTIONS_OF`)."""

    student: StudentConfig | None = None
    store: SerializeAsAny[StoreConfig]
    train: TrainConfig | None = None
    generate: GenerateConfig | None = None
    eval: EvalConfig | None = None

    @field_validator("store", mode="wrap")
    @classmethod
    def _read_a_list_of_stores(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        return listed_stores(value) if isinstance(value, list | tuple) else handler(value)

    @model_validator(mode="after")
    def _evaluated_teacher_is_there(self) -> Self:
        if self.eval is not None and self.eval.teacher and self.teacher is None:
            raise ValueError("eval.teacher is true, but there is no section teacher; add it, or remove eval.teacher")
        return self

    @model_validator(mode="after")
    def _losses_have_targets(self) -> Self:
        """Check before the teacher runs that each loss has a target, in a form that it can use."""
        if self.train is None or isinstance(self.store, ListedStores):
            return self  # what listed stores keep is in their manifests alone
        losses, targets = self.train.losses, self.train.targets
        weighed = targets_by_term(losses, self.store)
        problems = []
        if missing := [term for term, key in weighed.items() if self._is_missing(term, key)]:
            keys = [self._keys_of(term) for term in missing if term in _STORED_BY]
            named = ", ".join(keys)
            # a matching has no weight
            missing = [term if term in losses.weights else f"{term} {getattr(losses, term)}" for term in missing]
            problems.append(
                f"train.losses weighs {', '.join(missing)}, but the store keeps no target for it; "
                f"store the target{f' ({named})' if keys else ''} or set the weight to 0"
            )
        if self.teacher is not None and self.train.in_pairs and not any(one.pairs for one in self.data):
            problems.append(
                f"train.preference is {self.train.preference!r}, but no data set has pairs; set data.pairs, or "
                "train.preference to none and losses.preference to 0"
            )
        problems += [
            f"train.targets.{key} is 'stored', but store.{key} is 'stem'; change one of them"
            for key in weighed.values()
            if key in STEM_TARGETS and self.store.codec_of(key) == "stem" and getattr(targets, key) == "stored"
        ]
        # without a teacher section, only the configuration that dumped the store may contain its kind of logits
        if self.teacher is not None or "logits" in self.store.model_fields_set:
            problems += [f"train.{problem}" for problem in losses.problems_with(self.store.logits.kind, "the store")]
        if self.teacher is not None or "counterfactual" in self.store.model_fields_set:
            removed = None if self.store.counterfactual is None else self.store.counterfactual.remove
            compared = [term for term, key in weighed.items() if key == "counterfactual"]
            found = [losses.problem_of_counterfactual(term, removed) for term in compared]
            problems += [f"train.{problem}" for problem in found if problem is not None]
            if losses.logit_groups is not None and removed is None:
                problems.append(
                    f"train.losses.logit_groups is {losses.logit_groups!r}, but the teacher's counterfactual pass is "
                    "not stored; leave it out or set store.counterfactual"
                )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _domains_can_be_weighed(self) -> Self:
        """Check before the teacher runs that there are several domains, and that nothing else sets their weights."""
        if self.train is None or self.train.domain_weights is None:
            return self
        method = self.train.domain_weights.method
        given = [f"data.{number}.weight is {one.weight:g}" for number, one in enumerate(self.data) if one.weight != 1.0]
        if isinstance(self.store, ListedStores):
            weighted = (store.path for store in self.store.stores if store.weight != 1.0 or store.share is not None)
            given += [f"store {path} has a weight or share" for path in weighted]
        elif self.teacher is not None and len(self.data) == 1:
            raise ValueError(
                f"train.domain_weights is {method!r}, but there is one data set, so one domain; give several data "
                "sets, or leave it out"
            )
        if given:
            raise ValueError(
                f"train.domain_weights is {method!r}, which sets the weights of all domains, but {given[0]}; remove "
                "one of them"
            )
        return self

    def _is_missing(self, term: str, key: str) -> bool:
        """Whether a target is neither stored nor computed from the teacher's stem."""
        assert self.train is not None
        if term == "nd":
            is_kept = key == STATE_NORMS or self.store.logits.kind == "hidden"
            return self._is_of_dump("state_norms", "logits") and not is_kept
        if key == "logits":
            return self.store.logits.kind == "none"
        if key in ("counterfactual", "preference"):
            return False  # `LossConfig.problem_of_counterfactual`; every new store has the reference of pairs
        if key in (VISION_STATES, AFFINITY):
            return self._is_of_dump(key) and getattr(self.store, key) == NONE
        if key == "vision_relations":
            stored = self.store.vision_relations != NONE and self.store.relations_of == self.train.losses.relations_of
            return self._is_of_dump("vision_relations", "relations_of") and not stored
        codec, chosen = self.store.codec_of(key), getattr(self.train.targets, key)
        # a codec `stem` with targets `stored` is a problem of its own
        return codec != STEM and target_source(codec, chosen, has_stem=self.train.stem is not None) is None

    def _keys_of(self, term: str) -> str:
        """The settings that store the target of a term on states."""
        assert self.train is not None
        of = self.train.losses.relations_of
        return f"{_STORED_BY[term]}{f' and store.relations_of {of}' if term == 'relation' else ''}"

    def _is_of_dump(self, *keys: str) -> bool:
        """Whether this configuration dumps the store: without a teacher section, only that one may have these keys."""
        return self.teacher is not None or bool(self.store.model_fields_set & {*keys})

    def _named_data(self) -> list[tuple[str, DataConfig]]:
        """The data sets by their names, which are those of the sources in a store."""
        return list(zip(data_set_names(self.data_sets), self.data, strict=True))

    def dump_job(self) -> DumpJob:
        """The job of phase 1."""
        assert self.teacher is not None
        return DumpJob(
            data=self.data_sets,
            template=self.template,
            max_tokens=self.max_tokens,
            teacher=self.teacher,
            store=self.store,
        )

    def trained_stores(self) -> Path | str | tuple[TrainStore, ...]:
        """The store that a run is trained from, or several."""
        if not isinstance(self.store, ListedStores):
            return self.store.path
        return tuple(store.train_store() for store in self.store.stores)

    def train_job(self) -> TrainJob:
        """The job of phase 2."""
        assert self.student is not None and self.train is not None
        return TrainJob(
            student=self.student.checkpoint,
            vision_config=self.student.vision_config,
            processor=self.student.processor,
            dtype=self.student.dtype,
            images=self.data[0].images if len(self.data) == 1 else None,
            images_of={name: one.images for name, one in self._named_data() if len(self.data) > 1},
            source_weights={name: one.weight for name, one in self._named_data() if one.weight != 1.0},
            template=self.template,
            max_tokens=self.max_tokens,
            trained=self.student.trained_config,
            store=self.trained_stores(),
            train=self.train,
            configuration=self.model_dump(mode="json"),
        )


def targets_by_term(losses: LossConfig, store: StoreConfig) -> dict[str, Target]:
    """The target that each term with a weight takes from a store of these settings, by term."""
    relations = None if store.vision_relations == NONE else store.relations_of
    return losses.targets_in(relations=relations, norms=store.state_norms != NONE)


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
    if command == "layers" and values.get("store") is None:
        # targets that no store is there to keep cannot be checked
        values = {name: section for name, section in values.items() if name != "train"} | {"store": NO_STORE}
    several = isinstance(values.get("store"), list)
    needed = SECTIONS_OF["train" if several and command == "plan" else command]
    missing = [section for section in needed if values.get(section) is None]
    problems = [
        f"{section}: section is {'empty' if section in values else 'missing'}, alignkd {command} needs it"
        for section in missing
    ]
    if several and command in ("dump", "layers", "run"):
        problems.append(
            f"store: found a list, which is for `alignkd train`; alignkd {command} takes one store at a time: give it "
            "as a mapping with a path"
        )
    try:
        return RunConfig.model_validate(values), problems
    except ValidationError as error:
        listed = [
            problem_of(without_index(dict(item), values), RunConfig)
            for item in error.errors()
            if item["loc"][:1] not in {(m,) for m in missing}
        ]
        return None, problems + listed


def without_index(error: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A problem of the only data set, which the file has as a section, as a problem of that section."""
    where = error["loc"]
    if where[:2] == ("data", 0) and not isinstance(values.get("data"), list | tuple):
        error["loc"] = (where[0], *where[2:])
    return error


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
