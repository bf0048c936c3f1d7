"""Loading holds the weights once, the head is read alone, and recording attention makes nothing of size [H, L, L]."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
from anonymous_memory import PEAK_DURING
from live_bytes import LiveBytes
from prepared_processes import PreparedProcesses

from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import spliced_position_map

LENGTH = 4096
CHILD = (
    PEAK_DURING
    + """
import json, sys, torch
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.huggingface.model.weights import loading
torch.set_num_threads(1)
folder, out = map(Path, sys.argv[1:])
checkpoint = HuggingFaceCheckpoint(folder, folder)
config = checkpoint.config

def num_bytes(model):
    return sum(parameter.nbytes for parameter in model.parameters())

peaks = {}
peak, head = peak_during(lambda: checkpoint.lm_head(torch.bfloat16))
peaks["head"] = peak / head.weight_VD.nbytes
for name, dtype in ("bfloat16", torch.bfloat16), ("float32", torch.float32):
    peak, model = peak_during(lambda: loading.read_model(folder, config, dtype))
    peaks[name] = peak / num_bytes(model)
    if name == "bfloat16":
        from alignkd.vlm.families.huggingface.model.weights.saving import save_model
        peak, _ = peak_during(lambda: save_model(model, out, processor_from=folder))
        peaks["save"] = peak / num_bytes(model)
    del model
print(json.dumps(peaks))
"""
)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_weights_are_held_once(tmp_path: Path, prepared: PreparedProcesses, patience: float) -> None:
    folder = tiny_families.build(
        "gemma3", tmp_path / "large", hidden_size=1024, num_layers=4, heads=16, vocab_size=24000, dtype="bfloat16"
    )
    child = prepared.start("-c", CHILD, folder, tmp_path / "out")
    output, errors = child.communicate(patience)
    assert child.returncode == 0, errors
    peaks = json.loads(output.splitlines()[-1])
    assert peaks["bfloat16"] < 1.25 and peaks["float32"] < 1.25, peaks
    assert peaks["save"] < 1.1, peaks
    assert peaks["head"] < 1.5, peaks  # the matrix, and what importing more of transformers takes


def long_text(types: tuple[str, ...]) -> SequenceBatch:
    ids = np.random.default_rng(0).integers(10, 200, LENGTH).astype(np.int32)
    labels = np.full(LENGTH, IGNORE_LABEL, np.int32)
    positions = spliced_position_map(np.zeros(LENGTH, bool), labels, [], blocks_of_images=False)
    zeros = {name: np.zeros(LENGTH, np.int32) for name in types}
    return collate_sequences([Example(input_ids=ids, labels=labels, positions=positions, types=zeros)])


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_recording_makes_nothing_of_the_size_of_all_scores(cases: dict[str, Any], name: str) -> None:
    case = cases[name]
    model = case.model
    batch = long_text(tuple(case.batch.types))
    of_all_scores = 4 * model.config.num_heads * LENGTH**2

    with LiveBytes() as plain:
        model.hidden_states(batch, None)
    with LiveBytes() as recorded:
        with model.watched_first_layer() as first:
            model.hidden_states(batch, None)
        rows = torch.arange(LENGTH - 16, LENGTH)[None]
        first.attention(rows, torch.arange(64)[None])
    with LiveBytes() as eager:
        case.eager(
            input_ids=batch.input_ids_BL, **batch.types, output_attentions=True, use_cache=False, logits_to_keep=1
        )
    assert recorded.peak < plain.peak + of_all_scores / 8
    assert recorded.peak < of_all_scores
    assert eager.peak > of_all_scores  # the measure sees such a tensor
