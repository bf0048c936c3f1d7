"""Every loss term of the original's golden samples through dump, store and train as users run them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import SampleOrder, StoreReader

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]
# metrics.jsonl -> expected.json
TERMS = {
    "supervised": "student_ce",
    "logit": "reverse_kl",
    "attention": "attention_mse",
    "vision_all": "vision_all_mse",
    "vision_top": "vision_focus_mse",
}
# too small to change a float32 weight: every step then sees the golden student
NO_LEARNING = 1e-30


@pytest.mark.parametrize(("template", "num_samples"), [("plain", 3), ("v1", 4)])
def test_terms_of_every_sample_equal_the_original(
    alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, tmp_path: Path, template: str, num_samples: int
) -> None:
    data = {"conversations": str(golden / f"{template}.json"), "template": template}
    expected = {entry["id"]: entry for entry in json.loads((golden / "expected.json").read_text())}
    train = {
        "steps": num_samples,
        "micro_batch": 1,
        "learning_rate": NO_LEARNING,
        "adapters": str(golden / "adapters.safetensors"),
    }
    dumped = alignkd_here("dump", write_config(data=data))
    assert dumped.returncode == 0, dumped.stderr
    reader = StoreReader(tmp_path / "store")
    order = SampleOrder(len(reader), 0, 1)
    ids = [reader[int(order.global_batch_indices(step)[0])].id for step in range(num_samples)]
    assert len(set(ids)) == num_samples
    for divergence in ("reverse_kl", "forward_kl"):
        output = tmp_path / divergence
        changed = {**train, "output": str(output), "losses": {"logit_divergence": divergence}}
        trained = alignkd_here("train", write_config(data=data, train=changed))
        assert trained.returncode == 0, trained.stderr
        steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        for sample_id, metrics in zip(ids, steps, strict=True):
            _compare(metrics, expected[sample_id], divergence)


def _compare(metrics: dict[str, Any], expected: dict[str, Any], divergence: str) -> None:
    for term, name in TERMS.items():
        name = divergence if term == "logit" else name
        if name in expected:
            assert metrics[term] == pytest.approx(expected[name], rel=1e-4), (expected["id"], term)
        else:
            assert not expected["has_image"] and metrics[term] in (0.0, None)
    if expected["has_image"] and divergence == "reverse_kl":
        total = sum((0.1 if term == "vision_top" else 1.0) * metrics[term] for term in TERMS)
        assert metrics["loss"] == pytest.approx(total, rel=1e-5)
