"""The further targets on vision tokens and on the teacher's last hidden states: their names and forms."""

from typing import Final

from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.named import NamedTarget

# last hidden states after the final norm at the vision positions [P, Dt]; the teacher's head makes logits of them
VISION_STATES: Final = "vision_states"


def vision_states_target(codec: str, hidden_size: int) -> NamedTarget:
    """The target `vision_states`."""
    return NamedTarget(name=VISION_STATES, kind="values", codec=codec, rows="vision", width=hidden_size)


def keeps(manifest: Manifest, name: str) -> bool:
    """Whether a store keeps a further target of this name."""
    return any(target.name == name for target in manifest.stored_more)
