"""Settings of the terms on vision tokens, resolved."""

from dataclasses import dataclass
from typing import Literal

from alignkd.storage.schema.targets.vision import LAST_HIDDEN
from alignkd.student_train.losses.logits.divergences.f_divergences import Divergence, forward_kl

# of the teacher's logits at vision positions, which are exact: divergences on a support have nothing to leave out
VisualDivergence = Literal["forward_kl", "reverse_kl", "js"]
RelationRows = Literal["unit", "plain"]


@dataclass(frozen=True, kw_only=True)
class VisionSettings:
    """Settings of the terms `relation` and `visual_logit`.

    Attributes:
        relations_of: the states that relations compare: `last_hidden`, `projector` or `layer_K` of the teacher.
        layer: the student's decoder layer that is compared with `layer_K`.
        unit_rows: whether states are divided by their norms before relations are computed.
        divergence, temperature: of `visual_logit`.
    """

    relations_of: str = LAST_HIDDEN
    layer: int | None = None
    unit_rows: bool = True
    divergence: Divergence = forward_kl
    temperature: float = 1.0
