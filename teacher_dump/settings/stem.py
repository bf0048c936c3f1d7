"""The section `store.stem` of the configuration: how deep the stem is that a store carries."""

from collections.abc import Sequence

from alignkd.storage.schema.targets.attention import attention_targets
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.families.stem import smallest_depth
from alignkd.vlm.settings import Count, Settings

KEY = "store.stem.depth"


class StemConfig(Settings):
    """The stem that the store carries (docs/stem.md).

    Attributes:
        depth: number of the teacher's first decoder layers whose attention the stem gives. None takes what the targets
            with the codec `stem` need; without such targets the store then carries no stem. More is allowed, so that a
            later training can use more layers.
    """

    depth: Count | None = None

    def depth_of(self, from_stem: Sequence[str], further: Sequence[NamedTarget], teacher: ModelConfig) -> int | None:
        """The depth of the store's stem; None if it carries none.

        Args:
            from_stem: the targets of the store that are not stored because the stem gives them.
            further: its further targets.

        Raises:
            InputError: a depth that does not give the attention of a layer with the codec `stem`.
        """
        if not from_stem:
            return self.depth
        layers = [layer for target in attention_targets(further).values() for layer in target.layers]
        of_stem = layers if "attention" in from_stem else []
        needed = max([smallest_depth(teacher), *(layer + 1 for layer in of_stem)])
        if self.depth is not None and self.depth < needed:
            raise InputError(
                f"{KEY} is {self.depth}, but the targets with the codec stem ({', '.join(from_stem)}) need the "
                f"attention of layer {needed - 1}; set {KEY} to {needed} or more, or leave it out"
            )
        return self.depth or needed
