"""Inputs for measuring the teacher pass: a random teacher, and handwritten digits with answers of different lengths.

A random teacher's next token is nearly uniform, about 10 nats, so every nucleus has its largest size. A trained one has
1 to 3 nats: `scale_head` gives the random teacher this entropy.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from alignkd.pipeline.demo.world.tokenizer import TOKENIZER_MODEL
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import official_config
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 256,
}
QUESTION = "<image>\nWhich digit is written here, and how sure can one be of it?"
PHRASES = (
    "It is a {digit}, written by hand.",
    "The strokes leave little doubt that it is a {digit}, whatever else they say of it.",
    "One could take it for something else at first, and at a second look one would not.",
    "The pen was pressed harder where the line begins and let go where it ends.",
)
# bounds of the scale, and the number of bisections of their ratio
SMALLEST, LARGEST, HALVINGS = 1e-3, 1e4, 40


def write_inputs(folder: Path, options: Mapping[str, Any]) -> None:
    """Write a random teacher, and handwritten digits with answers of different lengths; all images differ."""
    hidden = options["hidden"]
    shape = {
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": options["layers"],
        "num_attention_heads": hidden // 64 if hidden < 2048 else hidden // 128,
        "mm_hidden_size": TOWER["hidden_size"],
        "mm_vision_tower": "clip",
    }
    shape["num_key_value_heads"] = shape["num_attention_heads"]
    teacher = folder / "teacher"
    (teacher / "clip").mkdir(parents=True)
    (teacher / "config.json").write_text(
        json.dumps({**official_config("MobileVLM_V2-1.7B"), **shape}), encoding="utf-8"
    )
    (teacher / "clip" / "config.json").write_text(json.dumps(TOWER), encoding="utf-8")
    shutil.copyfile(TOKENIZER_MODEL, teacher / "tokenizer.model")
    model: MobileVLM = new_model(load_config(teacher), seed=0)
    save_model(model, teacher, tokenizer_from=teacher, dtype=DTYPES[options["dtype"]])
    digits, random = load_digits(), np.random.default_rng(0)
    (folder / "images").mkdir()
    entries = []
    for number in range(options["samples"]):
        pixels = (digits.images[number % len(digits.images)] * 15).astype(np.uint8)
        Image.fromarray(pixels).convert("RGB").resize((480, 360)).save(folder / "images" / f"{number}.jpg", quality=90)
        words = [PHRASES[i % len(PHRASES)] for i in range(int(random.integers(1, 5)))]
        answer = " ".join(words).format(digit=digits.target[number % len(digits.target)])
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": answer}]
        entries.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")


@torch.no_grad()
def scale_head(model: MobileVLM, hidden_ND: Tensor, nats: float) -> Tensor:
    """Scale `lm_head` so that the next token's mean entropy at these hidden states is `nats`.

    Returns:
        The entropy at each state, [N].
    """
    logits_NV = model.lm_head(hidden_ND).float()
    low, high = SMALLEST, LARGEST
    for _ in range(HALVINGS):
        scale = (low * high) ** 0.5
        low, high = (scale, high) if _entropy(logits_NV * scale).mean() > nats else (low, scale)
    model.lm_head.weight.mul_(scale)
    return _entropy(model.lm_head(hidden_ND).float())


def _entropy(logits_NV: Tensor) -> Tensor:
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
