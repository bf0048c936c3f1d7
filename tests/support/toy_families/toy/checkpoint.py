"""The toy's checkpoint: `config.json` and `model.safetensors`."""

import hashlib
import json
from pathlib import Path

import torch
from alignkd.vlm.families.toy.model import SOFTCAP, ToyConfig, ToyModel
from alignkd.vlm.families.toy.preparation import NUM_TOKENS, ToyPreparation

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Head, VisionLanguageModel
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.weights.files import read_weights
from alignkd.vlm.weights.tensor_file import save_tensors

PADDED = NUM_TOKENS + 5
FILES = ("config.json", "model.safetensors")


class ToyCheckpoint:
    family = "toy"
    settings_fingerprint: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, name: str | Path, folder: Path) -> None:
        self.name, self.folder = name, folder

    @property
    def config(self) -> ToyConfig:
        raw = json.loads((self.folder / "config.json").read_text())
        return ToyConfig(hidden_size=raw["hidden_size"], num_heads=raw["num_heads"], vocab_size=PADDED)

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
