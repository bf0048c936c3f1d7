"""PaliGemma 1 and 2, with samples made by hand: no tokenizer and no processor.

They attend in both directions in their prefix, so a padded batch needs a mask; PaliGemma 2 also caps scores and
logits, which SDPA cannot do.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from processed_samples import Processed
from transformers import (
    AutoModelForImageTextToText,
    Gemma2Config,
    GemmaConfig,
    PaliGemmaConfig,
    SiglipVisionConfig,
)

from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import spliced_position_map

VOCABULARY, IMAGE = 99, 98
SIDE, PATCH = 16, 4
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
# Images and text tokens of each sample.
SAMPLES = ((1, 20), (0, 9), (2, 14))


def paligemma(folder: Path, samples: Sequence[tuple[int, int]] = SAMPLES) -> list[Processed]:
    return _paligemma(folder, samples, GemmaConfig(**TEXT, head_dim=16))


def paligemma2(folder: Path, samples: Sequence[tuple[int, int]] = SAMPLES) -> list[Processed]:
    text = Gemma2Config(
        **TEXT,
        head_dim=16,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        sliding_window=12,
    )
    return _paligemma(folder, samples, text)


def _paligemma(folder: Path, samples: Sequence[tuple[int, int]], text: Any) -> list[Processed]:
    tower = SiglipVisionConfig(**TOWER, image_size=SIDE, vision_use_head=False)
    _save(PaliGemmaConfig(text_config=text, vision_config=tower, image_token_index=IMAGE, projection_dim=32), folder)
    tokens = (SIDE // PATCH) ** 2

    def image(random: np.random.Generator) -> dict[str, np.ndarray]:
        return {"pixel_values": random.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)}

    return [
        _sample(seed, images, text, tokens, image, types=("token_type_ids",))
        for seed, (images, text) in enumerate(samples)
    ]


@torch.no_grad()
def _save(config: Any, folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
        else:
            inputs = parameter.numel() / parameter.shape[0]
            parameter.copy_(torch.randn_like(parameter) * (1.0 if "embed" in name else inputs**-0.5))
    model.save_pretrained(folder)


def _sample(
    seed: int,
    num_images: int,
    num_text: int,
    tokens: int,
    image: Callable[[np.random.Generator], dict[str, np.ndarray]],
    *,
    types: Sequence[str],
) -> Processed:
    """Images first, then text whose last four tokens are the answer (type 1)."""
    random = np.random.default_rng(seed)
    text = random.integers(3, IMAGE - 1, num_text)
    ids = np.concatenate([np.full(num_images * tokens, IMAGE), text]).astype(np.int32)
    labels = np.full(len(ids), IGNORE_LABEL, np.int32)
    labels[-4:] = ids[-4:]
    images = tuple(image(random) for _ in range(num_images))
    by_name = {name: (labels != IGNORE_LABEL).astype(np.int32) for name in types}
    whole: dict[str, Any] = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
    whole |= {name: torch.from_numpy(values.astype(np.int64))[None] for name, values in by_name.items()}
    if images:
        whole |= {name: torch.from_numpy(np.concatenate([one[name] for one in images])) for name in images[0]}
    positions = spliced_position_map(ids == IMAGE, labels, [tokens] * num_images, blocks_of_images=False)
    example = Example(input_ids=ids, labels=labels, positions=positions, types=by_name, images=images)
    return Processed(example=example, whole=whole)


BUILDERS: dict[str, Callable[[Path], list[Processed]]] = {
    "paligemma": paligemma,
    "paligemma2": paligemma2,
}
