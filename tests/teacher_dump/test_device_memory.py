"""The formula of a teacher pass's memory, against the tensors that were alive at once."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignkd.teacher_dump.config import TeacherConfig
from alignkd.teacher_dump.device_memory import device_bytes
from alignkd.teacher_dump.preparation import Preparation, Prepared
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.teacher_dump.targets.capture import Capture
from alignkd.vlm.data.conversations import Sample
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.model.config import VLMConfig, load_config
from alignkd.vlm.model.sizes import family_config
from alignkd.vlm.weights.checkpoint import load_example_builder
from alignkd.vlm.weights.loading import new_model

NUM = 8


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive; `peak` is the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.fixture(scope="module")
def config(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> VLMConfig:
    """The golden teacher's tower before a language model that is wide enough to count."""
    folder = tmp_path_factory.mktemp("wide")
    raw = json.loads((golden / "teacher" / "config.json").read_text())
    wide = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps({**raw, **wide, "num_key_value_heads": 8, "vocab_size": 4000}))
    return load_config(folder, vision_config=golden / "clip")


@pytest.fixture(scope="module")
def samples(golden: Path, golden_images: Path) -> list[Prepared]:
    builder = load_example_builder(golden / "teacher", template="v1", vision_config=golden / "clip")
    image = next(entry["image"] for entry in json.loads((golden / "v1.json").read_text()) if "image" in entry)
    turns = (Turn("human", "<image>\nWhat is it?"), Turn("gpt", "a cup of coffee on the table, and " * 6))
    with Preparation(builder, golden_images, 2) as preparation:
        return preparation.prepare([Sample(index=i, id=str(i), images=(image,), turns=turns) for i in range(NUM)])


@pytest.mark.parametrize(
    "store",
    [{"profile": "exact"}, {"profile": "compact"}, {"logits": {"kind": "sampled"}}, {"logits": {"kind": "full"}}],
)
def test_the_formula_bounds_what_is_alive(store: dict[str, Any], config: VLMConfig, samples: list[Prepared]) -> None:
    settings, longest = StoreConfig(path="store", **store), samples[0].length
    teacher = TeacherConfig(checkpoint="teacher", token_budget=NUM * longest, window=1)
    capture = Capture(new_model(config, seed=0), settings)
    with LiveBytes() as live:
        captured = capture(samples)
    assert len(captured) == NUM
    found = device_bytes(config, teacher, settings, longest)
    one_batch = found["peak"] - found["in_flight"] * 5 // 6
    assert live.peak <= one_batch <= 4 * live.peak, (live.peak, found)


def test_the_7b_teacher_fits_a_24_gb_card() -> None:
    config = family_config("MobileVLM_V2-7B")
    teacher = TeacherConfig(checkpoint="teacher", dtype="bfloat16")
    for profile in ("exact", "compact"):
        found = device_bytes(config, teacher, StoreConfig(path="store", profile=profile), longest=2048)
        weights = 14.13e9  # of the shapes, in bfloat16
        assert weights + found["peak"] < 20 * 2**30, found
