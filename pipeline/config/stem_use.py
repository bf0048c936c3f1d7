"""Whether a configuration takes targets from the teacher's stem, and whether its student's vision tower allows that."""

from collections.abc import Mapping

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.storage.codecs.settings import STEM_TARGETS
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.target_source import target_source
from alignkd.teacher_dump.attention_config import AttentionConfig
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.families.stem import smallest_depth
from alignkd.vlm.stem.towers import same_tower, why_no_stem
from alignkd.vlm.weights.hub import cached_checkpoint


def takes_from_stem(config: RunConfig) -> bool:
    """Whether training takes from the stem a target whose loss has a weight."""
    return bool(config.store.from_stem if config.train is None else targets_from_stem(config.train, config.store))


def targets_from_stem(train: TrainConfig, store: StoreConfig) -> frozenset[str]:
    """The targets, each of a loss with a weight, that training takes from the stem."""
    weighed, has_stem = {*train.losses.needed_targets.values()}, train.stem is not None
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

    The losses may name others only if the attention comes from a stem and the store has no list of layers.

    Raises:
        InputError: see `StoreConfig.further_targets`.
    """
    stored = config.store.attention_layers(teacher)
    if config.train is None or isinstance(config.store.attention, AttentionConfig):
        return stored
    chosen = config.train.losses.attention_layers
    source = target_source(
        config.store.codec_of("attention"), config.train.targets.attention, has_stem=config.train.stem is not None
    )
    if source != "stem" or not isinstance(chosen, Mapping) or "attention" not in config.train.losses.weights:
        return stored
    return tuple(sorted({layer for layers in chosen.values() for layer in layers}))


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
