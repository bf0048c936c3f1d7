"""TAID through both phases: the recorded loss is that beside the live teacher, and `report` shows the share."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.storage import StoreReader, TruncatedLogits
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]
START = 0.3


@torch.no_grad()
def beside_the_teacher(store: Path, golden: Path) -> tuple[float, float]:
    """Mean of the loss and of the cross-entropy at t = START, one sample at a time, on probabilities.

    Of the stored logits only the ids of the kept tokens are read; the others are merged on both sides.
    """
    preparation = load_preparation(golden / "student", template="v1", vision_config=golden / "clip")
    models = [load_model(golden / name, vision_config=golden / "clip") for name in ("student", "teacher")]
    losses: list[float] = []
    crosses: list[float] = []
    for record in StoreReader(store):
        files = [(golden.parent / "images" / image).read_bytes() for image in record.images]
        example = preparation.build(turns_of(record.conversations), files)
        batch = collate_sequences([example])
        sides = []
        for model in models:
            vision = model.encode_images(batch.images) if batch.images else None
            hidden = model.hidden_states(batch, vision)[0, example.positions.supervised_positions]
            sides.append(model.lm_head(hidden).double().softmax(-1))
        for place, (q, p) in enumerate(zip(*sides, strict=True)):
            if isinstance(record.logits, TruncatedLogits):
                start, stop = record.logits.offsets[place : place + 2]
                kept = torch.zeros(len(q), dtype=torch.bool)
                kept[torch.from_numpy(record.logits.ids[start:stop].astype("int64"))] = True
                q, p = (torch.cat([side[kept], side[~kept].sum()[None]]) for side in (q, p))
            m = q ** (1 - START) * p**START
            m = m / m.sum()
            losses.append(float((m * (m / q).log()).sum()))
            crosses.append(-float((m * q.log()).sum()))
    return sum(losses) / len(losses), sum(crosses) / len(crosses)


@pytest.mark.parametrize(
    ("logits", "form"),
    [({"kind": "hidden", "dtype": "float32"}, "full"), ({"kind": "topk", "top_k": 12, "dtype": "float32"}, "bucketed")],
)
def test_dump_training_and_report(
    logits: dict[str, Any],
    form: str,
    write_config: WriteConfig,
    golden: Path,
    tmp_path: Path,
    alignkd_here: Alignkd,
) -> None:
    losses = {"logit_divergence": "taid", "taid": {"start": START, "rate": 0.5, "form": form}}
    train = {"steps": 4, "micro_batch": 2, "global_batch": 4, "losses": losses}
    config = write_config(store={"logits": logits}, train=train)
    for command in ("dump", "train"):
        done = alignkd_here(command, config)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    loss, cross = beside_the_teacher(tmp_path / "store", golden)
    assert lines[0]["logit"] == pytest.approx(loss, rel=1e-4)
    assert lines[0]["taid_cross_entropy"] == pytest.approx(cross, rel=1e-4)
    shares = [line["taid_t"] for line in lines]
    assert shares[0] == shares[1] == START < shares[2] < shares[3]
    reported = alignkd_here("report", tmp_path / "out")
    (row,) = [line for line in reported.stdout.splitlines() if line.startswith("taid t in the last step")]
    assert row.split()[-1] == f"{shares[-1]:.4g}"
