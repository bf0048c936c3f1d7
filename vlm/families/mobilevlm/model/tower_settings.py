"""The settings of a model that decide the vision tower's features."""

import hashlib
import json
from typing import Any

from alignkd.vlm.families.mobilevlm.model.config import VLMConfig

SETTINGS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size hidden_act "
    "layer_norm_eps"
).split()


def tower_settings(config: VLMConfig) -> dict[str, Any]:
    """The settings of a model that decide the tower's features, independent of the library that reads them."""
    return {name: getattr(config.vision, name) for name in SETTINGS} | {"select": config.vision_select_layer}


def settings_fingerprint(config: VLMConfig) -> str:
    """sha256 of `tower_settings`."""
    return hashlib.sha256(json.dumps(tower_settings(config), sort_keys=True).encode()).hexdigest()
