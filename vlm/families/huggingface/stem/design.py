"""What the stem of a model of transformers consists of."""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig, empty_model, sizes_of
from alignkd.vlm.families.huggingface.model.head import described_head
from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel
from alignkd.vlm.families.huggingface.model.parts import tower_of
from alignkd.vlm.families.huggingface.model.quiet import quiet
from alignkd.vlm.families.huggingface.model.tower_outputs import feature_layers
from alignkd.vlm.families.huggingface.model.weights.weight_names import ParameterFiles
from alignkd.vlm.families.huggingface.stem.cut import WITH_STEM, cut_model
from alignkd.vlm.families.huggingface.stem.stem import HuggingFaceStem
from alignkd.vlm.families.huggingface.stem.tower import HuggingFaceTower
from alignkd.vlm.families.stem import DEPTH, EmbeddingTable, StemDesign, Tower, smallest_depth
from alignkd.vlm.weights.tensor_hash import hash_by_dtype

FAMILY = "huggingface"
HEAD, HEAD_BIAS = "lm_head.weight", "lm_head.bias"
# Parts of the names of settings of a tower that its features do not depend on.
_WITHOUT_EFFECT = ("dropout", "initializer", "dtype", "_version", "_name_or_path", "architectures", "label", "_attn_")


class HuggingFaceDesign(StemDesign):
    """The stem of one configuration, `depth` layers deep."""

    def __init__(self, config: HuggingFaceConfig, depth: int) -> None:
        self._config, self._depth = config, depth

    @classmethod
    def from_described(cls, values: Mapping[str, Any]) -> "HuggingFaceDesign":
        """The design whose `described` this is; damaged values raise errors of any class."""
        given = dict(values["config"])
        model_type = given.pop("model_type")
        if model_type not in WITH_STEM:
            raise ValueError(f"model_type {model_type!r} has no stem")
        with quiet():
            raw = AutoConfig.for_model(model_type, **given)
        raw._attn_implementation = None
        config = sizes_of(raw, Path("config.json"))
        return cls(config, values.get(DEPTH, smallest_depth(config)))

    @property
    def name(self) -> str:
        """The architecture."""
        return self._config.model_type

    @property
    def config(self) -> HuggingFaceConfig:
        """Sizes of the teacher."""
        return self._config

    @property
    def depth(self) -> int:
        """See `StemDesign.depth`."""
        return self._depth

    @property
    def tower_settings(self) -> Mapping[str, Any]:
        """The settings of the tower, and the hidden states that the projector uses."""
        return tower_settings(self._config.raw)

    @property
    def settings_fingerprint(self) -> Mapping[str, str]:
        """The family."""
        return {"family": FAMILY}

    @property
    def table_name(self) -> str:
        """Name of the embedding table."""
        embedding = self._cut.get_input_embeddings()
        return next(f"{name}.weight" for name, module in self._cut.named_modules() if module is embedding)

    def shapes(self, *, lm_head: bool) -> dict[str, tuple[int, ...]]:
        """Name in the model -> shape; see `StemDesign.shapes`."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self._cut.state_dict().items()}
        if lm_head:
            shapes[HEAD] = (self._config.vocab_size, self._config.hidden_size)
            if self._has_bias():
                shapes[HEAD_BIAS] = (self._config.vocab_size,)
        return shapes

    def described(self) -> dict[str, Any]:
        """The family, the configuration of transformers and the depth; see `StemDesign.described`."""
        config = json.loads(self._config.raw.to_json_string(use_diff=False))
        return {"family": FAMILY, "config": _without_version(config), **self.described_depth()}

    def read(self, checkpoint: Checkpoint, dtype: torch.dtype, *, lm_head: bool) -> dict[str, Tensor]:
        """The stem's tensors; see `StemDesign.read`."""
        assert isinstance(checkpoint, HuggingFaceCheckpoint)
        whole = empty_model(self._config.raw, checkpoint.folder / "config.json")
        files, parameters = ParameterFiles(checkpoint.folder_with_weights, whole), whole.state_dict(keep_vars=True)
        found = {name: files.read(parameters[name], dtype) for name in self._cut.state_dict()}
        if lm_head:
            head = checkpoint.lm_head(dtype)
            found[HEAD] = head.weight_VD.contiguous()
            if head.bias_V is not None:
                found[HEAD_BIAS] = head.bias_V.contiguous()
        return found

    def tower_hashes(self, checkpoint: Checkpoint, dtypes: Iterable[str]) -> dict[str, str]:
        """Dtype -> hash; see `StemDesign.tower_hashes`."""
        assert isinstance(checkpoint, HuggingFaceCheckpoint)
        whole = empty_model(checkpoint.config.raw, checkpoint.folder / "config.json")
        files = ParameterFiles(checkpoint.folder_with_weights, whole)
        return hash_by_dtype(files.tensors_of(tower_of(whole)), tower_settings(checkpoint.config.raw), dtypes)

    def tower_of_student(self, student: VisionLanguageModel) -> tuple[str, str] | None:
        """Dtype and hash; see `StemDesign.tower_of_student`."""
        if not isinstance(student, HuggingFaceModel) or student.config.model_type != self.name:
            return None
        tower = tower_of(student.model)
        assert tower is not None
        dtype = str(student.tower_dtype).removeprefix("torch.")
        return dtype, hash_by_dtype(tower.named_parameters(), tower_settings(student.config.raw), [dtype])[dtype]

    def load_tower(self, checkpoint: Checkpoint, dtype: torch.dtype) -> Tower:
        """The tower alone; see `StemDesign.load_tower`."""
        assert isinstance(checkpoint, HuggingFaceCheckpoint)
        return HuggingFaceTower(checkpoint, dtype)

    def cut(self, depth: int) -> "HuggingFaceDesign":
        """See `StemDesign.cut`."""
        return HuggingFaceDesign(self._config, depth)

    def build(self, weights: Mapping[str, Tensor], student: VisionLanguageModel | None = None) -> HuggingFaceStem:
        """The stem; see `StemDesign.build`."""
        rest, head = dict(weights), None
        table = EmbeddingTable(rest.pop(self.table_name))
        weight_VD, bias_V = rest.pop(HEAD, None), rest.pop(HEAD_BIAS, None)
        if weight_VD is not None:
            head = described_head(self._config.raw, weight_VD, bias_V)
        # passed where in doubt: a mask that hides padding is right for every model
        needs_mask = student.needs_mask if isinstance(student, HuggingFaceModel) else True
        return HuggingFaceStem(self._config, self._depth, rest, table, head, needs_mask=needs_mask)

    @cached_property
    def _cut(self) -> Any:
        return cut_model(self._config, self._depth)

    def _has_bias(self) -> bool:
        output = empty_model(self._config.raw, Path("config.json")).get_output_embeddings()
        return getattr(output, "bias", None) is not None


def tower_settings(raw: Any) -> dict[str, Any]:
    """The settings that decide the features of a model's tower."""
    vision = json.loads(raw.vision_config.to_json_string(use_diff=False))
    kept = {key: value for key, value in vision.items() if not any(part in key for part in _WITHOUT_EFFECT)}
    return {**kept, "select": list(feature_layers(raw))}


def _without_version(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_version(value) for key, value in values.items() if key != "transformers_version"}
    return values
