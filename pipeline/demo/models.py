"""The demo's two models: small versions of MobileVLM V2, in the official checkpoint layout."""

import json
import shutil
from pathlib import Path
from typing import Any

from alignkd.pipeline.demo.world.tokenizer import TOKENIZER_MODEL, VOCAB_SIZE
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model

TEACHER_CHECKPOINT = Path(__file__).parent / "assets" / "teacher"
VISION_FOLDER = "vision_tower"
# 72 x 72 pixels in 6-pixel patches: 12 x 12 patches, pooled to 6 x 6 vision tokens, four for each of the 9 cells.
VISION_TOWER: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 72,
    "patch_size": 6,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 64,
}
_FAMILY: dict[str, Any] = {
    "architectures": ["MobileLlamaForCausalLM"],
    "model_type": "mobilevlm",
    "vocab_size": VOCAB_SIZE,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "image_aspect_ratio": "pad",
    "mm_projector_type": "ldpnetv2",
    "mm_projector_grid": 6,
    "mm_hidden_size": VISION_TOWER["hidden_size"],
    "mm_vision_tower": VISION_FOLDER,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "vision_tower_type": "clip",
    "torch_dtype": "float32",
    "use_mm_proj": True,
}
TEACHER: dict[str, Any] = {
    **_FAMILY,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
STUDENT: dict[str, Any] = {
    **_FAMILY,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def write_configs(folder: Path, config: dict[str, Any]) -> None:
    """Write `config.json`, the vision tower's config and the tokenizer of a checkpoint without weights."""
    vision = folder / VISION_FOLDER
    vision.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (vision / "config.json").write_text(json.dumps(VISION_TOWER, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if TOKENIZER_MODEL.resolve() != (folder / "tokenizer.model").resolve():
        shutil.copyfile(TOKENIZER_MODEL, folder / "tokenizer.model")


def write_student(folder: Path, *, teacher: MobileVLM, seed: int) -> None:
    """Write the checkpoint of an untrained student with the teacher's vision tower."""
    write_configs(folder, STUDENT)
    student = new_model(load_config(folder), seed=seed)
    student.model.vision_tower.load_state_dict(teacher.model.vision_tower.state_dict())
    save_model(student, folder, tokenizer_from=folder)
