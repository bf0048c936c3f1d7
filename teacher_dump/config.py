"""What phase 1 is told: which teacher runs and what of it is kept."""

from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

DtypeName = Literal["float32", "bfloat16", "float16"]
FloatCodecName = Literal["float32", "float16", "none"]
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_TOP_K = 64


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherConfig(_Settings):
    """The teacher and how it is run.

    Attributes:
        checkpoint: folder in the official layout, or hub id.
        vision_config: folder with the vision tower's config.json, overriding the checkpoint's `mm_vision_tower`.
        dtype: of the teacher's weights and arithmetic.
        batch: samples per forward pass.
        device: torch device; None takes a GPU when there is one.
    """

    checkpoint: str
    vision_config: Path | None = None
    dtype: DtypeName = "float32"
    batch: int = Field(default=8, ge=1)
    device: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's own."""
        return TORCH_DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """Where the teacher runs."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


class LogitsConfig(_Settings):
    """How the teacher's distribution at supervised positions is kept.

    Attributes:
        kind: `full` keeps every logit; `topk` the `top_k` most likely tokens, the label's token, and the exact mass
            of the rest; `none` nothing.
        top_k: entries of `topk`; 64 when not given.
        dtype: of logits (`full`) or log-probabilities (`topk`); float32 for `full`, float16 for `topk` by default.
    """

    kind: Literal["full", "topk", "none"] = "topk"
    top_k: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "float16"] | None = None

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if self.kind != "topk" and self.top_k is not None:
            raise ValueError(f"top_k {self.top_k} with kind {self.kind!r}; top_k belongs to kind 'topk'")
        return self

    @property
    def kept_entries(self) -> int | None:
        """K of `topk`, None for other kinds."""
        return (self.top_k or DEFAULT_TOP_K) if self.kind == "topk" else None

    @property
    def stored_dtype(self) -> Literal["float32", "float16"]:
        """`dtype` with its default filled in."""
        return self.dtype or ("float16" if self.kind == "topk" else "float32")


class StoreConfig(_Settings):
    """Where the targets go, which are kept, and how.

    Attributes:
        path: folder of the store; created, or gone on with when its manifest is the same.
        backend: physical layout of the shards.
        attention: codec of the first layer's attention.
        attention_pairs: which queries and keys: text-query-vision (the method), or for ablations text-query-text
            and vision-query-vision.
        vision_top, vision_all: codecs of the 16 focused and of all vision embeddings.
        shard_size: samples per shard.
        seed: of the order in which samples are written.
        on_error: `quarantine` lists an unusable sample in the store and goes on; `stop` ends the run.
        max_errors: unusable samples after which a run stops all the same; None for no limit.
    """

    path: Path
    backend: Literal["zarr"] = "zarr"
    attention: FloatCodecName = "float16"
    attention_pairs: Literal["tqv", "tqt", "vqv"] = "tqv"
    vision_top: FloatCodecName = "float16"
    vision_all: FloatCodecName = "float16"
    logits: LogitsConfig = LogitsConfig()
    shard_size: int = Field(default=256, ge=1)
    seed: int = Field(default=0, ge=0)
    on_error: Literal["quarantine", "stop"] = "quarantine"
    max_errors: int | None = Field(default=None, ge=0)
