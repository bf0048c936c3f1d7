"""The trained module of a run: student, adapters, and the frozen parts of the teacher that its targets need."""

import logging
from collections.abc import Sequence

import torch

from alignkd.storage import StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.stem_targets import StemTargets
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.centres import Centres
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.attention.chosen import attention_match, fixed_heads, teacher_heads
from alignkd.student_train.run.checks.fit import compared_tokens
from alignkd.student_train.run.checks.target_sources import needs_head, stem_of_run, targets_of_stem
from alignkd.student_train.trained.lora import add_lora
from alignkd.vlm.families.family import Checkpoint, Head, VisionLanguageModel
from alignkd.vlm.families.stem import smallest_depth
from alignkd.vlm.stem.checks import check_same_tower
from alignkd.vlm.stem.file import open_stem
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, read_head

logger = logging.getLogger(__name__)


def build_student(
    job: TrainJob,
    checkpoint: Checkpoint,
    reader: StoreReader,
    device: torch.device | str = "cpu",
) -> DistilledStudent:
    """The student with adapters from the store's teacher: those of an earlier stage if the job names them, or fresh.

    Args:
        device: on which quantised weights are made, because they cannot move; any other student is on the CPU.
    """
    model = load_student(job, checkpoint, device)
    match = attention_match(reader, model.config, job.train)
    num_heads, hidden_size = teacher_heads(reader, job.train), reader.manifest.shapes.hidden_size
    layers = None if match is None else match.student_layers
    states = "nd" in job.train.losses.weights and hidden_size != model.config.hidden_size
    adapters = _adapters(job, model, num_heads=num_heads, hidden_size=hidden_size, layers=layers, states=states)
    stem, head = load_stem(job, reader, model, () if match is None else match.teacher_layers)
    if head is None:
        head = teacher_head(reader, job.train.losses)
    lora = job.trained.lora_settings
    if job.train.gradient_checkpointing:
        # the tower is frozen and keeps nothing; the attention loss and the head bound their memory themselves
        model.checkpoint_layers(preserve_rng_state=lora is not None and lora.dropout > 0)
    num_tokens = compared_tokens(reader, model.config)
    return DistilledStudent(
        model,
        adapters,
        job.train.losses,
        head,
        stem,
        num_tokens,
        job.trained,
        attention=match,
        fixed_heads=fixed_heads(match, num_students=model.config.num_heads, num_teachers=num_heads),
        frozen_adapters=job.train.frozen_adapters,
        preference=job.train.preference_settings,
        centres=read_centres(job.train, reader),
    )


def read_centres(config: TrainConfig, reader: StoreReader) -> Centres | None:
    """The teacher's class means; None if the loss `nd` has no weight.

    Raises:
        TrainError, InputError: see `Centres.read`.
    """
    if "nd" not in config.losses.weights:
        return None
    assert config.centres is not None  # `TrainConfig`
    manifest = reader.manifest
    return Centres.read(
        config.centres,
        fingerprint=manifest.fingerprint,
        store=str(reader.path),
        sizes=(manifest.shapes.vocab_size, manifest.shapes.hidden_size),
    )


def load_student(job: TrainJob, checkpoint: Checkpoint, device: torch.device | str) -> VisionLanguageModel:
    """The student's model, with LoRA if the job trains it."""
    if job.trained.quantization == "none":
        model = checkpoint.load_model(dtype=job.torch_dtype)
    else:
        model = checkpoint.load_model(dtype=job.torch_dtype, device=device, quantization=job.trained.quantization)
    if (lora := job.trained.lora_settings) is not None:
        add_lora(model, lora, seed=job.train.seed)
    return model


def use_chosen_kernels(job: TrainJob, model: VisionLanguageModel, ranks: Ranks) -> None:
    """Use the kernels of the settings in the student, once it is on its device, and log which.

    Raises:
        InputError: they cannot run here, or not for this student.
    """
    if job.train.kernels != "torch":
        line = model.use_kernels(job.train.kernels)
        if ranks.is_first:
            logger.info("%s", line)


def student_to_export(
    job: TrainJob,
    checkpoint: Checkpoint,
    *,
    num_heads: int,
    hidden_size: int,
    layers: Sequence[int] | None = None,
    states: bool = False,
) -> DistilledStudent:
    """The student before its first step, without what only training needs: targets, stem and output head of a teacher.

    Args:
        num_heads: attention heads of the teacher.
        hidden_size: hidden size of the teacher.
        layers: of the student, if several have an adapter.
        states: whether its hidden states have an adapter.
    """
    model = load_student(job, checkpoint, "cpu")
    adapters = _adapters(job, model, num_heads=num_heads, hidden_size=hidden_size, layers=layers, states=states)
    frozen = job.train.frozen_adapters
    return DistilledStudent(model, adapters, job.train.losses, trained=job.trained, frozen_adapters=frozen)


def _adapters(
    job: TrainJob,
    model: VisionLanguageModel,
    *,
    num_heads: int,
    hidden_size: int,
    layers: Sequence[int] | None,
    states: bool,
) -> Adapters:
    """Adapters before the first step, from a teacher with so many heads and this hidden size."""
    if job.train.losses.attention_heads != "adapter":
        layers = None  # the one that every run has stays as it is
    adapters = Adapters(
        heads=(num_heads, model.config.num_heads),
        hidden_sizes=(hidden_size, model.config.hidden_size),
        layers=layers,
        states=states,
    )
    if job.train.adapters is None:
        adapters.initialise(job.train.adapter_init, seed=job.train.seed)
    else:
        adapters.load(job.train.adapters)
    return adapters


def load_stem(
    job: TrainJob, reader: StoreReader, student: VisionLanguageModel, layers: Sequence[int]
) -> tuple[StemTargets | None, Head | None]:
    """What computes the targets that are not stored, and the teacher's output head if the stem provides it.

    Args:
        layers: the teacher's layers whose attention is compared; the stem's layers after these are not loaded.

    Raises:
        InputError: the student's vision tower differs from that of the stem's teacher; else as `stem_of_run`.
    """
    info, wanted = stem_of_run(reader, job.train), targets_of_stem(reader, job.train)
    if info is None:
        return None, None
    if wanted != {"logits"}:
        check_same_tower(info, student)
    needed = layers if "attention" in wanted else ()
    depth = max([smallest_depth(info.config), *(layer + 1 for layer in needed)])
    stem = open_stem(info.path, lm_head="logits" in wanted, student=student, depth=depth)
    head = stem.take_head()
    if wanted == {"logits"}:
        return None, head
    return StemTargets(stem, wanted - {"logits"}, chunk_bytes=job.train.losses.attention_chunk_bytes), head


def teacher_head(reader: StoreReader, losses: LossConfig) -> Head | None:
    """The head that turns stored hidden states into logits; None if the run needs none."""
    if not needs_head(reader.manifest, losses):
        return None
    shapes = reader.manifest.shapes
    return read_head(reader.attachment(LM_HEAD_FILE), vocab_size=shapes.vocab_size, hidden_size=shapes.hidden_size)
