"""Whether a configuration takes targets from the teacher's stem, and whether its student's vision tower allows that."""

from pathlib import Path

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.config.run_config import RunConfig, targets_by_term
from alignkd.storage.codecs.settings import NONE, STEM_TARGETS
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.attention.layer_map import compared_teacher_layers
from alignkd.student_train.target_source import target_source
from alignkd.teacher_dump.settings.attention import AttentionConfig
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.families.stem import smallest_depth
from alignkd.vlm.stem.file import read_stem_info
from alignkd.vlm.stem.towers import same_tower, why_no_stem
from alignkd.vlm.weights.hub import cached_checkpoint


def takes_from_stem(config: RunConfig) -> bool:
    """Whether training takes from the stem a target whose loss has a weight."""
    return bool(config.store.from_stem if config.train is None else targets_from_stem(config.train, config.store))


def targets_from_stem(train: TrainConfig, store: StoreConfig) -> frozenset[str]:
    """The targets, each of a loss with a weight, that training takes from the stem."""
    weighed, has_stem = {*targets_by_term(train.losses, store).values()}, train.stem is not None
    return frozenset(
        key
        for key in weighed & set(STEM_TARGETS)
        if target_source(store.codec_of(key), getattr(train.targets, key), has_stem=has_stem) == "stem"
    )


def stem_depth_of(config: RunConfig, teacher: ModelConfig) -> int:
    """Depth of the stem that gives every alignment target of a configuration, stored or not.

    The store's stem may be deeper; training loads no more of it than it needs.

    Raises:
        InputError: see `StoreConfig.further_targets`.
    """
    return max(smallest_depth(teacher), 1 + max(stem_layers_of(config, teacher)))


def stem_layers_of(config: RunConfig, teacher: ModelConfig) -> tuple[int, ...]:
    """The teacher's layers whose attention is a target, rising: those of the store, or those that the losses name.

    The losses may name others only if the attention comes from a stem and the store has no list of layers. A band of
    the student is then compared with all layers that the stem gives.

    Raises:
        InputError: see `StoreConfig.further_targets`; or a damaged stem.
    """
    stored = config.store.attention_layers(teacher)
    if config.train is None or isinstance(config.store.attention, AttentionConfig):
        return stored
    chosen = config.train.losses.attention_layers
    if chosen is None or "attention" not in targets_from_stem(config.train, config.store):
        return stored
    return compared_teacher_layers(chosen, available_layers(config, teacher) or stored)


def available_layers(config: RunConfig, teacher: ModelConfig) -> tuple[int, ...] | None:
    """The teacher's layers of which training has attention, rising; None if the file of the stem is not there yet.

    Raises:
        InputError: see `StoreConfig.further_targets`; or a damaged stem.
    """
    assert config.train is not None
    named = config.store.attention_layers(teacher)
    if "attention" not in targets_from_stem(config.train, config.store):
        is_first = config.store.first_layer_codec != NONE and not config.train.losses.compares_layers
        return (teacher.attention_layer,) if is_first else named
    if (depth := _depth_of_stem(config.train.stem, config.store, teacher)) is None:
        return None
    of_store = named if isinstance(config.store.attention, AttentionConfig) else teacher.attention_layers
    return tuple(layer for layer in of_store if layer < depth)


def _depth_of_stem(file: Path | None, store: StoreConfig, teacher: ModelConfig) -> int | None:
    if file is None:
        return store.stem_depth(teacher)
    return read_stem_info(file).depth if file.is_file() else None


def tower_match(config: RunConfig) -> tuple[bool | None, str]:
    """Whether teacher and student have the same vision tower, so that the stem can use the student's features.

    The settings of the towers are compared first, then the weights in the student's dtype. Weights are read only if
    both checkpoints are on this machine; nothing is downloaded.

    Returns:
        True, False, or None if it cannot be decided; and the reason.
    """
    teacher, student = config.teacher, config.student
    if teacher is None or student is None:
        return None, "the configuration has no student"
    models = [PlannedModel(model.checkpoint, model.vision_config, model.processor) for model in (teacher, student)]
    try:
        reason = why_no_stem(*(model.config for model in models))
    except InputError:
        return None, f"the student {student.checkpoint} does not exist yet"
    if reason is not None:
        return False, reason
    if any(cached_checkpoint(model.name) is None for model in models):
        return None, "at least one checkpoint is not on this machine; `alignkd train` compares the towers"
    return same_tower(models[0].checkpoint, models[1].checkpoint, student.dtype)
