"""Configuration of a checkpoint in MobileVLM's layout: its `config.json` plus the vision tower's own config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.mobilevlm.model.projector import PROJECTOR_TYPES, is_projector_type, projector_grid
from alignkd.vlm.families.mobilevlm.model.projector_ldp import CHANNEL_STEP

# LLaVA, on whose training code MobileVLM's is based, has the same layout in its own repository's form.
MODEL_TYPES = ("mobilevlm", "llava", "llava_llama")
DEFAULT_POOLED_GRID = 12
# Keys that decide the forward pass; all other keys of config.json are kept unchanged.
LLAMA_KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act "
    "max_position_embeddings initializer_range rms_norm_eps rope_theta rope_scaling tie_word_embeddings "
    "bos_token_id eos_token_id pad_token_id attention_bias mlp_bias head_dim"
).split()
REQUIRED_KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads mm_projector_type "
    "mm_hidden_size mm_vision_select_layer"
).split()
# Key -> (value when absent, the only supported value). Other values would give silently wrong results.
SUPPORTED: dict[str, tuple[Any, Any]] = {
    "mm_vision_select_feature": ("patch", "patch"),
    "mm_use_im_start_end": (False, False),
    "mm_use_im_patch_token": (False, False),
    "mm_patch_merge_type": ("flat", "flat"),
    "tie_word_embeddings": (False, False),
}
# Vision configs of known hub models, so that a checkpoint loads without the hub.
KNOWN_VISION_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 768,
    }
}

# With other values the original splits an image into several.
ASPECT_RATIOS = (None, "pad", "square")

Config = TypeVar("Config")


@dataclass(frozen=True)
class VLMConfig:
    """Shapes and settings of one model.

    Attributes:
        raw: content of `config.json`, written back on export.
        llama: the language model's config.
        vision: the CLIP tower's config.
        preprocessor: `preprocessor_config.json` next to the vision config, or empty.
    """

    raw: dict[str, Any]
    llama: LlamaConfig
    vision: CLIPVisionConfig
    preprocessor: dict[str, Any]

    @property
    def projector_type(self) -> str:
        """One of `alignkd.vlm.families.mobilevlm.model.projector.PROJECTOR_TYPES`."""
        return str(self.raw["mm_projector_type"])

    @property
    def pooled_grid(self) -> int:
        """Side of the grid that `ldpnetv2` pools to; 12 in official checkpoints (`mm_projector_grid` is our key)."""
        return int(self.raw.get("mm_projector_grid", DEFAULT_POOLED_GRID))

    @property
    def vision_grid(self) -> int:
        """Side of the square of vision tokens."""
        patch_grid = int(self.vision.image_size) // int(self.vision.patch_size)
        return projector_grid(self.projector_type, patch_grid, self.pooled_grid)

    @property
    def vision_tokens(self) -> int:
        """P, vision tokens per image."""
        return self.vision_grid**2

    @property
    def hidden_size(self) -> int:
        """D, hidden size of the language model."""
        return int(self.llama.hidden_size)

    @property
    def num_heads(self) -> int:
        """H, attention heads (query heads if keys are grouped)."""
        return int(self.llama.num_attention_heads)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.llama.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """V, vocabulary size."""
        return int(self.llama.vocab_size)

    @property
    def pads_vocabulary(self) -> bool:
        """False: every column of the head is a token."""
        return False

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Every layer of the decoder."""
        return tuple(range(self.num_layers))

    @property
    def attention_layer(self) -> int:
        """The first of `attention_layers`."""
        return 0

    @property
    def max_positions(self) -> int:
        """Maximum sequence length of the language model."""
        return int(self.llama.max_position_embeddings)

    @property
    def vision_select_layer(self) -> int:
        """Index into the tower's hidden states; -2 skips its last layer."""
        return int(self.raw["mm_vision_select_layer"])

    @property
    def pad_to_square(self) -> bool:
        """Whether images are padded to a square before resizing."""
        return bool(self.raw.get("image_aspect_ratio") == "pad")


def load_config(checkpoint: Path, *, vision_config: Path | None = None) -> VLMConfig:
    """Read `checkpoint/config.json` and the vision tower's config.

    Args:
        checkpoint: folder in the official layout.
        vision_config: folder (or file) with the tower's `config.json`; overrides `mm_vision_tower`.

    Raises:
        InputError: not a checkpoint of this layout, or the vision config cannot be found.
    """
    path = checkpoint / "config.json"
    return parse_config(read_json(path), path=path, vision_config=vision_config)


def parse_config(raw: Any, *, path: Path, vision_config: Path | None = None) -> VLMConfig:
    """The configuration that the JSON object `raw` describes.

    Args:
        raw: content of `config.json` as the original saves it.
        path: path of that file, for messages and for a vision tower next to it.
        vision_config: folder (or file) with the tower's `config.json`; overrides `mm_vision_tower`.

    Raises:
        InputError: not a model of this layout, a variant that is not supported, or no vision config.
    """
    _check_layout(raw, path)
    _check_variant(raw, path)
    vision, preprocessor = _vision_config(path.parent, raw, vision_config)
    if vision.hidden_size != raw["mm_hidden_size"]:
        raise InputError(
            f"{path}: mm_hidden_size {raw['mm_hidden_size']}, but the vision config has hidden_size "
            f"{vision.hidden_size}; give the right folder as vision_config (of a command: --vision-config)"
        )
    settings = {key: raw[key] for key in LLAMA_KEYS if raw.get(key) is not None}
    llama = _build(LlamaConfig, {**settings, "attn_implementation": "sdpa"}, path)
    if raw["mm_projector_type"] == "ldpnet" and llama.hidden_size % CHANNEL_STEP:
        raise InputError(
            f"{path}: hidden_size {llama.hidden_size}, but mm_projector_type 'ldpnet' takes multiples of "
            f"{CHANNEL_STEP}; use an official checkpoint"
        )
    return VLMConfig(raw=raw, llama=llama, vision=vision, preprocessor=preprocessor)


def _check_layout(raw: Any, path: Path) -> None:
    if not isinstance(raw, dict) or raw.get("model_type") not in MODEL_TYPES:
        found = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise InputError(
            f"{path}: model_type {found!r}, expected one of {', '.join(map(repr, MODEL_TYPES))}; point at a MobileVLM "
            "or LLaVA checkpoint"
        )
    if "text_config" in raw:
        raise InputError(
            f"{path}: has text_config, so its weights have transformers' own names, expected LLaVA's; take the "
            "checkpoint that LLaVA's own repository names"
        )
    if missing := [key for key in REQUIRED_KEYS if key not in raw]:
        raise InputError(f"{path}: keys {', '.join(missing)} are missing; copy config.json from the original again")


def _check_variant(raw: dict[str, Any], path: Path) -> None:
    """Refuse settings whose computation is not implemented."""
    for key, (default, supported) in SUPPORTED.items():
        if raw.get(key, default) != supported:
            raise InputError(f"{path}: {key} {raw[key]!r}, only {supported!r} is supported; use an official checkpoint")
    if not is_projector_type(raw["mm_projector_type"]):
        raise InputError(
            f"{path}: mm_projector_type {raw['mm_projector_type']!r}, expected one of {', '.join(PROJECTOR_TYPES)}; "
            "use an official checkpoint"
        )
    if (ratio := raw.get("image_aspect_ratio")) not in ASPECT_RATIOS:
        raise InputError(
            f"{path}: image_aspect_ratio {ratio!r}, expected one of {', '.join(map(str, ASPECT_RATIOS))}; checkpoints "
            "that split an image into several parts are not supported"
        )


def _build(kind: type[Config], settings: dict[str, Any], path: Path) -> Config:
    try:
        return kind(**settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{path}: {one_line(error)[:200]}; copy config.json from the original again") from error


def _vision_config(
    checkpoint: Path, raw: dict[str, Any], override: Path | None
) -> tuple[CLIPVisionConfig, dict[str, Any]]:
    if override is not None:
        return _read_vision_config(override)
    name = str(raw.get("mm_vision_tower"))
    if name in KNOWN_VISION_TOWERS:
        return CLIPVisionConfig(**KNOWN_VISION_TOWERS[name]), {}
    for folder in (checkpoint / name, Path(name)):
        if (folder / "config.json").is_file():
            return _read_vision_config(folder)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{checkpoint / 'config.json'}: the config of vision tower {name!r} is neither known, nor a local folder, "
            f"nor on the hub ({one_line(error)[:120]}); give its folder as vision_config "
            "(of a command: --vision-config)"
        ) from error
    return getattr(config, "vision_config", config), {}


def _read_vision_config(path: Path) -> tuple[CLIPVisionConfig, dict[str, Any]]:
    file = path / "config.json" if path.is_dir() else path
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(f"{file}: a JSON {type(config).__name__}, expected a vision tower's config; give its folder")
    config = config.get("vision_config", config)
    preprocessor_file = file.parent / "preprocessor_config.json"
    preprocessor = read_json(preprocessor_file) if preprocessor_file.is_file() else {}
    return _build(CLIPVisionConfig, config, file), preprocessor
