"""The further targets on vision tokens and on the teacher's last hidden states: their names and forms."""

import re
from typing import Final

from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.named import NamedTarget

# last hidden states after the final norm at the vision positions [P, Dt]; the teacher's head makes logits of them
VISION_STATES: Final = "vision_states"
# cosines of the states of all pairs of vision tokens of an image [R], image after image: of hidden states of the
# decoder, and of the projector's output
RELATIONS: Final = "vision_relations"
PROJECTOR_RELATIONS: Final = "projector_relations"
# norms of the last hidden states at the supervised positions [N]
STATE_NORMS: Final = "state_norms"

LAST_HIDDEN, PROJECTOR = "last_hidden", "projector"
_LAYER = re.compile(r"layer_(0|[1-9]\d{0,3})")


def check_relations_of(value: str) -> str:
    """Check which states relations are of.

    Raises:
        ValueError: naming the value and the choices.
    """
    if value not in (LAST_HIDDEN, PROJECTOR) and not _LAYER.fullmatch(value):
        raise ValueError(f"found {value!r}, expected last_hidden, projector or layer_K with the number K of a layer")
    return value


def layer_of_relations(of: str) -> int | None:
    """K of `layer_K`, else None."""
    return int(of.removeprefix("layer_")) if _LAYER.fullmatch(of) else None


def vision_states_target(codec: str, hidden_size: int) -> NamedTarget:
    """The target `vision_states`."""
    return NamedTarget(name=VISION_STATES, kind="values", codec=codec, rows="vision", width=hidden_size)


def relations_target(codec: str, of: str) -> NamedTarget:
    """The target with the relations of these states: a number for each pair, (0, 1), (0, 2) ... of each image."""
    layer = layer_of_relations(of)
    name = PROJECTOR_RELATIONS if of == PROJECTOR else RELATIONS
    return NamedTarget(name=name, kind="values", codec=codec, rows="own", layers=() if layer is None else (layer,))


def state_norms_target(codec: str) -> NamedTarget:
    """The target `state_norms`."""
    return NamedTarget(name=STATE_NORMS, kind="values", codec=codec, rows="supervised")


def keeps(manifest: Manifest, name: str) -> bool:
    """Whether a store keeps a further target of this name."""
    return any(target.name == name for target in manifest.stored_more)


def stored_relations(manifest: Manifest) -> tuple[str, str] | None:
    """Name of the target with the relations that a store keeps, and the states that they are of; None without any."""
    for target in manifest.stored_more:
        if target.name == PROJECTOR_RELATIONS:
            return target.name, PROJECTOR
        if target.name == RELATIONS:
            return target.name, f"layer_{target.layers[0]}" if target.layers else LAST_HIDDEN
    return None
