"""Loading and saving hold a model's weights in memory once, whatever the dtype on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from anonymous_memory import PEAK_DURING
from prepared_processes import PreparedProcesses

from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.writer import write_weights

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
CHILD = (
    PEAK_DURING
    + """
import json, sys, torch
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.weights.files import read_weights
torch.set_num_threads(1)
folder, clip, out = map(Path, sys.argv[1:])

def num_bytes(weights):
    return sum(tensor.nbytes for tensor in (weights if isinstance(weights, dict) else weights.state_dict()).values())

def load(dtype):
    return load_model(folder, vision_config=clip, dtype=dtype)

def all_at_once():
    weights = read_weights(folder)
    return {key: tensor.float() for key, tensor in weights.items()}

def share_of(action):
    peak, result = peak_during(action)
    return peak / num_bytes(result), result

peaks = {"float32": share_of(lambda: load(torch.float32))[0], "all at once": share_of(all_at_once)[0]}
# Any device but the CPU: the meta device takes tensors away from the host as a GPU does.
elsewhere = lambda: load_model(folder, vision_config=clip, dtype=torch.bfloat16, device="meta")
peaks["elsewhere"] = share_of(elsewhere)[0]
peaks["float16"], model = share_of(lambda: load(torch.float16))
peaks["save"], _ = share_of(lambda: save_model(model, out, tokenizer_from=folder) or model)
print(json.dumps(peaks))
"""
)


def num_bytes(weights: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())


@pytest.fixture(scope="module")
def peaks(
    golden: Path, tmp_path_factory: pytest.TempPathFactory, prepared: PreparedProcesses, patience: float
) -> dict[str, float]:
    """Peak memory of each action as a share of the weights it leaves, over 190 MB of float16 in shards."""
    folder = tmp_path_factory.mktemp("large")
    shapes: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6}
    shapes |= {"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 8000}
    raw = json.loads((golden / "student/config.json").read_text()) | shapes
    (folder / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        state = MobileVLM(load_config(folder, vision_config=golden / "clip")).state_dict()
    weights = {key: torch.full(tensor.shape, 0.01, dtype=torch.float16) for key, tensor in state.items()}
    assert 180e6 < num_bytes(weights) < 200e6
    assert len(write_weights(weights, folder, dtype=None, max_shard_bytes=50_000_000)) >= 4
    child = prepared.start("-c", CHILD, folder, golden / "clip", folder / "saved")
    output, errors = child.communicate(patience)
    assert child.returncode == 0, errors
    return dict(json.loads(output))


def test_loading_holds_the_weights_once(peaks: dict[str, float]) -> None:
    for dtype in ("float16", "float32"):
        assert 0.95 < peaks[dtype] < 1.3, peaks


def test_the_host_never_holds_a_model_that_goes_to_another_device(peaks: dict[str, float]) -> None:
    assert peaks["elsewhere"] < 0.2, peaks


def test_the_measure_sees_a_second_copy(peaks: dict[str, float]) -> None:
    assert peaks["all at once"] > 1.4, peaks


def test_saving_copies_nothing_that_is_on_the_cpu_already(peaks: dict[str, float]) -> None:
    assert peaks["save"] < 0.2, peaks
