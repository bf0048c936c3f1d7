"""The further target `vision_text_affinity`: cosines between text queries and vision tokens of the teacher."""

from typing import Final

from alignkd.storage.schema.targets.named import NamedTarget

# cosines of the last hidden states after the final norm, [Q, P]: text positions after the last vision token of the
# last image, and the vision tokens of all images side by side
AFFINITY: Final = "vision_text_affinity"


def affinity_target(codec: str) -> NamedTarget:
    """The target `vision_text_affinity`."""
    return NamedTarget(name=AFFINITY, kind="values", codec=codec, rows="tqv_query", columns="vision")
