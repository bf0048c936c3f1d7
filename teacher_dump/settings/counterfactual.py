"""The section `store.counterfactual` of the configuration: a second teacher pass with vision tokens replaced."""

import json
from typing import Self

from pydantic import Field, model_validator

from alignkd.storage.schema.targets.counterfactual import Removed, counterfactual_targets
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.vlm.settings import Count, Settings

# Raise it when the same settings would replace other tokens, or replace them by other embeddings.
REPLACEMENT_VERSION = 1


class CounterfactualConfig(Settings):
    """A second pass of the teacher with vision embeddings replaced by those of a neutral image.

    Attributes:
        remove: `image` replaces every vision token, `focus` the `share` of them with the highest focus score (eq. 2),
            which are the evidence of the losses `effect` and `keep`.
        share: share of a sample's vision tokens that `focus` replaces, rounded up; default 0.25 as in MCD.
        entries: most tokens that are stored at a position, with the log-probabilities of both passes.
        mass: each pass keeps its most probable tokens up to this mass; the tokens of both are stored. 1 always stores
            `entries` tokens, those most probable in either pass.
    """

    remove: Removed = "focus"
    share: float | None = Field(default=None, gt=0, lt=1)
    entries: Count = 128
    mass: float = Field(default=0.98, gt=0, le=1)

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        if self.remove == "image" and self.share is not None:
            raise ValueError(
                f"share is {self.share}, but remove 'image' replaces every vision token; leave share out or set remove "
                "to focus"
            )
        return self

    @property
    def focus_share(self) -> float:
        """`share` with its default."""
        return 0.25 if self.share is None else self.share

    def targets(self) -> tuple[NamedTarget, ...]:
        """The targets that the pass adds to the store."""
        return counterfactual_targets(self.remove, entries=self.entries, mass=self.mass)

    def fingerprint(self) -> str:
        """What decides the second pass, for the manifest."""
        share = {"share": self.focus_share} if self.remove == "focus" else {}
        return json.dumps({"remove": self.remove, **share, "replacement": REPLACEMENT_VERSION})
