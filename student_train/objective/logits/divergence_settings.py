"""Sections of `train.losses` for divergences of the logit loss that have several settings."""

from typing import Annotated, Literal

from pydantic import Field

from alignkd.vlm.settings import Positive, Settings


class BildConfig(Settings):
    """`train.losses.bild`, of `logit_divergence: bild`. Defaults are the authors'.

    Attributes:
        k: number of the most probable tokens that are compared in pairs. Two tokens have one difference, whose share is
            always 1.
        temperature: divides the differences. It takes the place of `losses.temperature`.
        lead: whose most probable tokens are compared. `both`: the teacher's and the student's, for `full` and `hidden`
            logits. `teacher`: the teacher's alone, which `topk` and `nucleus` logits allow as well, with any tail.
    """

    k: Annotated[int, Field(ge=3, le=128)] = 8
    temperature: Positive = 3.0
    lead: Literal["teacher", "both"] = "both"


class SinkhornConfig(Settings):
    """`train.losses.sinkhorn`, of `logit_divergence: sinkhorn`. Defaults but `positions` are the authors'.

    Attributes:
        temperature: divides the logits of both sides. It takes the place of `losses.temperature`, and the loss is not
            multiplied by its square. `topk` and `nucleus` logits need 1.0.
        epsilon: weight of the entropy of the plan; a smaller one gives a sharper plan.
        iterations: how often rows and columns are normalised.
        positions: most supervised positions of a group. Each sample's positions are divided into as few groups as
            possible, of consecutive positions and nearly equal sizes. The time of a group grows with its square. Its
            logits are computed at once, even if they are larger than `losses.head_chunk_mib`.
    """

    temperature: Positive = 2.0
    epsilon: Positive = 0.1
    iterations: Annotated[int, Field(ge=1, le=1000)] = 20
    positions: Annotated[int, Field(ge=1, le=1024)] = 64
