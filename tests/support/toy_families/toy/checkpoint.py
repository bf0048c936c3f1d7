"""The toy's checkpoint: `config.json` and `model.safetensors`."""

import hashlib
import json
from pathlib import Path

import torch
from alignkd.vlm.families.toy.model import SOFTCAP, TOWER_WIDTH, ToyConfig, ToyModel
from alignkd.vlm.families.toy.preparation import NUM_TOKENS, ToyPreparation
from torch import nn

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Head, VisionLanguageModel
from alignkd.vlm.families.sizes import ModelSize, TowerSize, shapes_of_linear_layers, tensors_of_layers
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.weights.files import read_weights
from alignkd.vlm.weights.tensor_file import save_tensors

PADDED = NUM_TOKENS + 5
FILES = ("config.json", "model.safetensors")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class ToyCheckpoint:
    family = "toy"
    settings_fingerprint: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, name: str | Path, folder: Path) -> None:
        self.name, self.folder = name, folder

    @property
    def config(self) -> ToyConfig:
        raw = json.loads((self.folder / "config.json").read_text())
        return ToyConfig(hidden_size=raw["hidden_size"], num_heads=raw["num_heads"], vocab_size=PADDED)

    def size(self) -> ModelSize:
        config = self.config
        with torch.device("meta"):
            model = ToyModel(config)
        counts = {"vision_tower": count(model.tower), "projector": count(model.projector), "total": count(model)}
        counts["language_model"] = counts["total"] - counts["vision_tower"] - counts["projector"]
        return ModelSize(
            name=str(self.name),
            num_layers=len(model.layers),
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            head_dim=config.hidden_size // config.num_heads,
            intermediate_size=0,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            more_norms=0,
            tied_head=False,
            vision_tower="columns",
            image_size=None,
            vision_tokens=None,
            tower=TowerSize(patch_size=1, patches=None, hidden_size=TOWER_WIDTH, intermediate_size=0, num_layers=1),
            parameters=counts,
            weight_bytes={"bfloat16": 2 * counts["total"], "float32": 4 * counts["total"]},
            layer_tensors=tensors_of_layers(list(model.layers)),
            linear_layers=shapes_of_linear_layers(list(model.layers)),
        )

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join((self.folder / name).read_bytes() for name in FILES)).hexdigest()

    def preparation(self, template: str | None = None, *, max_tokens: int | None = None) -> ToyPreparation:
        if template is not None:
            raise InputError(f"{self.name}: has one template of its own; leave data.template out")
        return ToyPreparation(max_tokens=max_tokens)

    def load_model(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        quantization: Quantization = "none",
    ) -> ToyModel:
        model = ToyModel(self.config)
        model.load_state_dict(read_weights(self.folder))
        return model.to(device, dtype).eval()

    def attachments(self) -> dict[str, bytes]:
        return {}

    def lm_head(self, dtype: torch.dtype) -> Head:
        return Head(weight_VD=read_weights(self.folder)["lm_head.weight"].to(dtype), softcap=SOFTCAP)

    def save(self, model: VisionLanguageModel, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes((self.folder / "config.json").read_bytes())
        save_tensors(model.state_dict(), folder / "model.safetensors")

    def is_complete(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in FILES)


def write_toy(folder: Path, *, hidden_size: int, num_heads: int, seed: int) -> Path:
    """A random checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "toy", "hidden_size": hidden_size, "num_heads": num_heads})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_tensors(ToyModel(ToyCheckpoint(folder, folder).config).state_dict(), folder / "model.safetensors")
    return folder
