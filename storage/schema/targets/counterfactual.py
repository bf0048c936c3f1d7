"""The further targets that a counterfactual pass of the teacher adds to a store: their names and forms.

A second pass sees the same text and the vision embeddings of a neutral image, in place of all vision tokens (`image`)
or of those with the highest focus score (`focus`). Both passes are stored on ONE list of tokens for each position.
"""

from typing import Any, Final, Literal

from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.named import NamedTarget

Removed = Literal["image", "focus"]

# log-probabilities of the pass over the sample as it is, and of the pass with vision tokens replaced
FULL: Final = "counterfactual_full"
REMOVED: Final = "counterfactual_removed"
# log p(label | image) - log p(label | replaced), float16 [N]
ADVANTAGE: Final = "visual_advantage"
# 1 for a vision token that was replaced, else 0, float16 [P]; only of `focus`
EVIDENCE: Final = "evidence"


def counterfactual_targets(remove: Removed, *, entries: int, mass: float) -> tuple[NamedTarget, ...]:
    """The targets of a store with a counterfactual pass.

    Args:
        remove: what is replaced.
        entries: most tokens that are kept at a position.
        mass: what each of the two passes keeps at least, in at most `entries` tokens.
    """
    codec = LogitsCodec(kind="nucleus", p=mass, min_entries=1, max_entries=entries)
    passes: dict[str, Any] = {FULL: "before_replacement", REMOVED: "replaced_vision"}
    logits = [
        NamedTarget(name=name, kind="logits", codec=codec, rows="supervised", forward_pass=forward_pass)
        for name, forward_pass in passes.items()
    ]
    advantage = NamedTarget(
        name=ADVANTAGE, kind="values", codec="float16", rows="supervised", forward_pass="replaced_vision"
    )
    evidence = NamedTarget(name=EVIDENCE, kind="values", codec="float16", rows="vision")
    return (*logits, advantage, *((evidence,) if remove == "focus" else ()))


def removed_part(manifest: Manifest) -> Removed | None:
    """What the counterfactual pass of a store replaced; None if the store has none."""
    names = {target.name for target in manifest.more}
    if not {FULL, REMOVED} <= names:
        return None
    return "focus" if EVIDENCE in names else "image"


def stores_advantage(manifest: Manifest) -> bool:
    """Whether the store keeps the visual advantage of the labels."""
    return any(target.name == ADVANTAGE for target in manifest.stored_more)
