"""Stored targets that no loss of a run compares with."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from alignkd.storage import StoreReader
from alignkd.storage.codecs.settings import FROM_ALL, NONE, NOT_STORED
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.attention import attention_targets
from alignkd.storage.schema.targets.counterfactual import removed_part
from alignkd.storage.schema.targets.vision import STATE_NORMS, VISION_STATES, keeps, stored_relations
from alignkd.storage.tools.target_bytes import bytes_per_record
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.attention_source import stored_attention
from alignkd.student_train.objective.attention.layer_map import compared_teacher_layers
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.checks.target_sources import targets_by_term, targets_of_stem
from alignkd.vlm.attention.layer_choice import shown_layers


@dataclass(frozen=True, kw_only=True)
class UnusedTarget:
    """A stored target, or some layers of the attention, that no loss compares with.

    Attributes:
        target: `attention`, `vision_top`, `vision_all`, `logits`, `counterfactual`, or the name of a further target.
        layers: the teacher's layers; empty for other targets.
        share: share of the target's bytes; None if it is not known.
    """

    target: str
    layers: tuple[int, ...] = ()
    share: float | None = 1.0

    def __str__(self) -> str:
        if not self.layers:
            return self.target
        return f"attention of layer{'' if len(self.layers) == 1 else 's'} {shown_layers(self.layers)}"


def unused_targets(manifest: Manifest, losses: LossConfig, from_stem: Collection[str]) -> tuple[UnusedTarget, ...]:
    """The stored targets that no loss compares with.

    Args:
        from_stem: the targets that the run takes from the stem, whether they are stored or not.
    """
    compared: set[str] = {*targets_by_term(manifest, losses).values()}
    needed = compared - {*from_stem}
    codecs = manifest.codecs
    if losses.logit_groups is not None:
        needed.add("counterfactual")
    if "vision_top" in needed and codecs.vision_top == FROM_ALL:
        needed.add("vision_all")
    stored = {
        "vision_top": codecs.vision_top not in NOT_STORED,
        "vision_all": codecs.vision_all not in NOT_STORED,
        "logits": codecs.logits.kind != "none",
        **{name: keeps(manifest, name) for name in (VISION_STATES, STATE_NORMS, AFFINITY)},
        "counterfactual": removed_part(manifest) is not None,
    }
    if (relations := stored_relations(manifest)) is not None:
        name, _ = relations
        stored[name] = True
        needed |= {name} if "vision_relations" in needed else set()
    others = (UnusedTarget(target=name) for name, is_stored in stored.items() if is_stored and name not in needed)
    return (*_unused_attention(manifest, losses, used="attention" in needed), *others)


def unused_line(unused: Sequence[UnusedTarget], sizes: Mapping[str, float], where: str) -> str | None:
    """A note on unused targets, None without any.

    Args:
        sizes: target -> bytes per sample.
        where: names the store.
    """
    if not unused:
        return None
    parts = [_with_size(one, sizes.get(one.target, 0.0)) for one in unused]
    return (
        f"{where}: no loss uses {', '.join(parts)}; to save the space, leave them out of the section store in the next "
        "dump; to use them, set train.losses"
    )


def _with_size(unused: UnusedTarget, size: float) -> str:
    return str(unused) if unused.share is None else f"{unused} ({_kib(unused.share * size)} KiB per sample)"


def _kib(size: float) -> str:
    kib = size / 1024
    return f"{kib:,.1f}" if kib >= 1 else f"{kib:.2g}"


def unused_of_store(reader: StoreReader, config: TrainConfig) -> str | None:
    """`unused_line` of a store that a run reads.

    Raises:
        CorruptStoreError: the tables of its first shard are damaged.
    """
    found = unused_targets(reader.manifest, config.losses, targets_of_stem(reader, config) - {"logits"})
    return unused_line(found, bytes_per_record(reader), f"store {reader.path}") if found else None


def _unused_attention(manifest: Manifest, losses: LossConfig, *, used: bool) -> list[UnusedTarget]:
    has_both = manifest.codecs.attention != NONE and bool(attention_targets(manifest.more))
    found = []
    for of_layers in (False, True) if has_both else (losses.compares_layers,):
        attention = stored_attention(manifest, of_layers=of_layers)
        if attention.codec in NOT_STORED:
            continue
        is_used = used and of_layers == losses.compares_layers
        compared = compared_teacher_layers(losses.attention_layers, attention.layers) if is_used else ()
        if rest := tuple(layer for layer in attention.layers if layer not in compared):
            share = None if has_both else len(rest) / len(attention.layers)
            found.append(UnusedTarget(target="attention", layers=rest, share=share))
    return found
