"""The stem of MobileVLM teachers, as a `StemDesign`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.families.mobilevlm.model.config import LLAMA_KEYS, VLMConfig
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.tower_settings import settings_fingerprint, tower_settings
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.mobilevlm.weights.sources import WeightSource, tower_tensors
from alignkd.vlm.families.mobilevlm.weights.tower import MobileVLMTower
from alignkd.vlm.families.mobilevlm.weights.tower_hash import running_tower_hash, tower_hashes
from alignkd.vlm.families.stem import DEPTH, StemDesign, Tower
from alignkd.vlm.finite import check_finite
from alignkd.vlm.stem.stem import EMBEDDING_KEY, TeacherStem, stem_shapes


class MobileVLMDesign(StemDesign):
    """The stem of one MobileVLM configuration, `depth` layers deep."""

    def __init__(self, config: VLMConfig, depth: int = 1) -> None:
        self._config, self._depth = config, depth

    @classmethod
    def from_described(cls, values: Mapping[str, Any]) -> "MobileVLMDesign":
        """The design whose `described` this is; damaged values raise errors of any class."""
        raw = values["config"]
        settings = {key: raw[key] for key in LLAMA_KEYS if raw.get(key) is not None}
        config = VLMConfig(
            raw=raw,
            llama=LlamaConfig(**settings, attn_implementation="sdpa"),
            vision=CLIPVisionConfig(**values["vision"]),
            preprocessor={},
        )
        return cls(config, values.get(DEPTH, 1))

    @property
    def name(self) -> str:
        """The family."""
        return "mobilevlm"

    @property
    def config(self) -> VLMConfig:
        """Sizes of the teacher."""
        return self._config

    @property
    def depth(self) -> int:
        """See `StemDesign.depth`."""
        return self._depth

    @property
    def tower_settings(self) -> Mapping[str, Any]:
        """The settings of the tower, and its tokens per image."""
        return {**tower_settings(self._config), "vision_tokens": self._config.vision_tokens}

    @property
    def settings_fingerprint(self) -> Mapping[str, str]:
        """The settings of the tower, hashed."""
        return {"vision_config": settings_fingerprint(self._config)}

    @property
    def table_name(self) -> str:
        """Name of the embedding table."""
        return EMBEDDING_KEY

    def shapes(self, *, lm_head: bool) -> dict[str, tuple[int, ...]]:
        """Checkpoint name -> shape; see `StemDesign.shapes`."""
        return stem_shapes(self._config, lm_head=lm_head, depth=self._depth)

    def described(self) -> dict[str, Any]:
        """`config`, `vision` and depth; see `StemDesign.described`."""
        vision = json.loads(self._config.vision.to_json_string(use_diff=False))
        return {
            "config": self._config.raw,
            "vision": {name: value for name, value in vision.items() if name != "transformers_version"},
            **self.described_depth(),
        }

    def read(self, checkpoint: Checkpoint, dtype: torch.dtype, *, lm_head: bool) -> dict[str, Tensor]:
        """The stem's tensors; see `StemDesign.read`."""
        assert isinstance(checkpoint, MobileVLMCheckpoint)
        return _read(checkpoint.folder, checkpoint.sources, self.shapes(lm_head=lm_head), dtype)

    def tower_hashes(self, checkpoint: Checkpoint, dtypes: Iterable[str]) -> dict[str, str]:
        """Dtype -> hash; see `StemDesign.tower_hashes`."""
        assert isinstance(checkpoint, MobileVLMCheckpoint)
        return tower_hashes(tower_tensors(checkpoint.folder, checkpoint.sources), checkpoint.config, dtypes)

    def tower_of_student(self, student: VisionLanguageModel) -> tuple[str, str] | None:
        """Dtype and hash; see `StemDesign.tower_of_student`."""
        return running_tower_hash(student) if isinstance(student, MobileVLM) else None

    def load_tower(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Tower:
        """The tower alone; see `StemDesign.load_tower`."""
        assert isinstance(checkpoint, MobileVLMCheckpoint)
        return MobileVLMTower(checkpoint, dtype)

    def cut(self, depth: int) -> "MobileVLMDesign":
        """See `StemDesign.cut`."""
        return MobileVLMDesign(self._config, depth)

    def build(self, weights: Mapping[str, Tensor], student: VisionLanguageModel | None = None) -> TeacherStem:
        """The stem; see `StemDesign.build`."""
        return TeacherStem(self._config, weights, depth=self._depth)


def _read(
    folder: Path, sources: Iterable[WeightSource], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The wanted tensors, each copied out of the mapped file."""
    found: dict[str, Tensor] = {}
    for source in sources:
        if not shapes.keys() & source.shapes().keys():
            continue
        for key, tensor in source.tensors():  # views: the pages of other tensors are never read
            if key in shapes:
                if tuple(tensor.shape) != shapes[key]:
                    raise InputError(
                        f"{folder}: {key} has shape {tuple(tensor.shape)}, config.json says {shapes[key]}; take both "
                        "from the same checkpoint"
                    )
                check_finite(tensor, key, source.file)
                found[key] = tensor.to(dtype, copy=True).contiguous()
    if missing := sorted(shapes.keys() - found.keys()):
        raise InputError(f"{folder}: no {', '.join(missing)} in its weights; give a complete checkpoint")
    return found
