"""Writes a tiny checkpoint: random weights of a size at which attention is far from uniform, and the processor."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.utils import logging

from tiny_families.tokenizers_of_families import Words, tokenizer_of

logging.disable_progress_bar()

_NORMS = ("q_norm.weight", "k_norm.weight", "q_layernorm.weight", "k_layernorm.weight")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the decoder. `vocabulary` counts the rows of the embedding, `tie` whether the head shares them."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    tie: bool

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_heads(self) -> int:
        """Half of the heads, so that keys are shared between heads."""
        return max(1, self.heads // 2)

    def text(self, **more: Any) -> dict[str, Any]:
        """Arguments that the text configurations of all families have in common."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
            **more,
        }


@dataclass(frozen=True)
class Family:
    """How the checkpoints of one family look.

    Attributes:
        words: Its special tokens.
        template: Its chat template, jinja; None for a family without one.
        config: Makes the configuration, given the sizes and a function from a token to its id.
        processor: Makes the processor, given the tokenizer and the template.
        stops: Tokens in the list `eos_token_id` of generation_config.json.
        rows: The embedding has a multiple of so many rows; 1: as many as the tokenizer has entries.
        tie: Whether the head shares the embedding's rows unless the caller says so.
        layers: Layers of the decoder unless the caller says so.
        norms: Added to the gains of the norms of queries and keys, which decide how peaked attention is.
    """

    words: Words
    template: str | None
    config: Callable[[Sizes, Callable[[str], int]], Any]
    processor: Callable[[Any, str | None], Any]
    stops: tuple[str, ...]
    rows: int = 64
    tie: bool = False
    layers: int = 2
    norms: float = 0.6


class Builder(Protocol):
    """Writes a checkpoint of one family; the arguments are those of `build_family`."""

    def __call__(
        self,
        folder: Path,
        *,
        seed: int = ...,
        hidden_size: int = ...,
        num_layers: int | None = ...,
        heads: int = ...,
        vocab_size: int | None = ...,
        dtype: str = ...,
        tie: bool | None = ...,
        tower_seed: int | None = ...,
    ) -> Path: ...


def build_family(
    family: Family,
    folder: Path,
    *,
    seed: int = 0,
    hidden_size: int = 32,
    num_layers: int | None = None,
    heads: int = 2,
    vocab_size: int | None = None,
    dtype: str = "float32",
    tie: bool | None = None,
    tower_seed: int | None = None,
) -> Path:
    """Write a tiny checkpoint.

    Args:
        family: What to write.
        folder: Where; created with its parents.
        seed: Decides the weights.
        hidden_size: Width of the decoder; a multiple of `8 * heads`.
        num_layers: Layers of the decoder; None: as many as the family needs to reach an attention layer, at least 2.
        heads: Attention heads of the decoder, an even number.
        vocab_size: Rows of the embedding and of the head; at least the tokenizer's entries; None: as the family pads.
        dtype: Name of the type of the weights in the file.
        tie: Whether the head shares the embedding's rows; None: as in the family.
        tower_seed: Decides the weights of the vision tower, to share it between checkpoints; None: `seed`.

    Returns:
        `folder`.
    """
    tokenizer = tokenizer_of(family.words)
    processor = family.processor(tokenizer, family.template)  # some add tokens
    rows = vocab_size or -(-len(tokenizer) // family.rows) * family.rows
    if rows < len(tokenizer):
        raise ValueError(f"vocab_size {vocab_size} is less than the {len(tokenizer)} entries of the tokenizer")
    sizes = Sizes(hidden_size, num_layers or family.layers, heads, rows, family.tie if tie is None else tie)
    config = family.config(sizes, tokenizer.convert_tokens_to_ids)
    model = AutoModelForImageTextToText.from_config(config)
    _draw(model, seed, seed if tower_seed is None else tower_seed, family.norms)
    stops = [tokenizer.convert_tokens_to_ids(stop) for stop in family.stops]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _draw(model: Any, seed: int, tower_seed: int, norms: float) -> None:
    """Draw every parameter from its own name, so that a tower does not depend on the sizes of the decoder.

    A matrix keeps the scale of what it is applied to; the embedding has entries of size 1; gains and biases are moved
    by a tenth. Queries and keys, or the gains of their norms, are larger, so that attention has peaks.
    """
    of_tower = {id(parameter) for parameter in model.get_encoder("image").parameters()}
    for name, parameter in model.named_parameters():
        text = f"{tower_seed if id(parameter) in of_tower else seed}:{name}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        if name.endswith(_NORMS):
            parameter.add_(norms + 0.3 * noise)
        elif parameter.ndim < 2:
            if name.endswith(("bias", "embedding")):
                parameter.zero_()  # some are random in a new model
            parameter.add_(0.1 * noise)
        elif "embed" in name and "patch" not in name:
            parameter.copy_(noise)
        else:
            gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv")) else 1.0
            parameter.copy_(noise * gain / (parameter.numel() / parameter.shape[0]) ** 0.5)
