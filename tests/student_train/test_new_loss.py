"""A new loss takes a formula and an entry in the table of terms; everything else follows from the table."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_processes import PreparedProcesses

from alignkd.student_train.data.targets import RaggedEntries, TruncatedTargets
from alignkd.student_train.job import TrainJob
from alignkd.student_train.losses.fused_head import WeightedTerm, fused_head_losses
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.term import Term
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.output import loss_names
from alignkd.vlm.families.family import Head

PROCESS = Path(__file__).parent / "toy_loss_process.py"
WEIGHTS = {"vision_l1": 2.0, "vision_all": 0.0, "label_surprise": 0.25}


def train_with_toy_losses(job: TrainJob, prepared_libraries: PreparedProcesses, patience: float) -> tuple[float, str]:
    """Expected first value of `vision_l1`, and the report."""
    train = {**job.train.model_dump(mode="json", exclude_unset=True), "losses": WEIGHTS}
    values = vars(job) | {"train": train, "trained": job.trained.model_dump(mode="json")}
    code = f"import runpy, sys; sys.path[:0] = {[str(PROCESS.parent), str(PROCESS.parents[2] / 'src')]}; "
    code += f"runpy.run_path({str(PROCESS)!r}, run_name='__main__')"
    process = prepared_libraries.start("-c", code, json.dumps(values, default=str))
    output, errors = process.communicate(patience)
    assert process.wait(patience) == 0, errors
    value, _, report = output.partition("\n")
    return float(value), report


@pytest.mark.parametrize("store", ["full", "truncated"])
def test_a_new_loss_is_in_settings_metrics_total_tensorboard_and_report(
    store: str,
    many_store: Path,
    truncated_store: Path,
    make_job: Callable[..., TrainJob],
    prepared_libraries: PreparedProcesses,
    patience: float,
) -> None:
    """Of a truncated teacher cross-entropy and logit loss share a pass over the logits, which overwrites them."""
    job = make_job({"full": many_store, "truncated": truncated_store}[store], steps=3, micro_batch=5)
    expected, report = train_with_toy_losses(job, prepared_libraries, patience)
    lines = [json.loads(line) for line in (job.train.output / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and lines[0]["vision_l1"] == pytest.approx(expected, rel=1e-5)
    assert lines[2]["vision_l1"] < lines[0]["vision_l1"]  # it is learnt: no other term trains the projection so

    weights: dict[str, Any] = {name: WEIGHTS.get(name, term.weight) for name, term in TERMS.items()} | WEIGHTS
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    for line in lines:
        assert loss_names(line) == ["loss", *weights]
        assert line["label_surprise"] == pytest.approx(line["supervised"], rel=1e-4)
        assert line["loss"] == pytest.approx(sum(weight * line[name] for name, weight in weights.items()), rel=1e-5)
    last = {row.rsplit(None, 1)[0].strip(): row.split()[-1] for row in report.splitlines() if row.strip()}
    assert float(last["vision l1"]) == pytest.approx(sum(line["vision_l1"] for line in lines) / 3, rel=1e-3)
    assert "label surprise" in last

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(job.train.output / "tensorboard")).Reload()
    assert {"loss/vision_l1", "loss/label_surprise"} <= set(events.Tags()["scalars"])


def test_a_new_loss_on_logits_has_its_own_gradient_next_to_terms_that_overwrite_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(PROCESS.parent)
    from toy_losses import ENTRIES

    losses = LossConfig()
    monkeypatch.setitem(TERMS, "label_surprise", ENTRIES["label_surprise"])
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((6, 5), (40, 5))]
    targets = TruncatedTargets(
        entries=RaggedEntries(
            ids_E=torch.arange(12).to(torch.uint16),
            values_E=torch.full((12,), -3.0),
            offsets=torch.arange(0, 13, 2),
            widest=2,
        ),
        tail_logmass_N=torch.full((6,), -0.1),
    )
    inputs = losses.head_inputs(torch.arange(6), targets, None)
    weights = {"supervised": 1.0, "label_surprise": 0.25, "logit": 0.5}
    made = {name: TERMS[name].on_logits for name in weights}
    apart = [WeightedTerm(term=make(inputs), weight=weights[name]) for name, make in made.items() if make is not None]
    head = Head(weight_VD=leaves[1])
    together, each = (
        [loss.total for loss in fused_head_losses(leaves[0], head, terms)]
        for terms in (head_terms(inputs, weights), apart)
    )
    assert len(apart) == 3
    torch.testing.assert_close(together, each)
    found, expected = (
        torch.autograd.grad(sum(w * total for w, total in zip(weights.values(), totals, strict=True)), leaves)
        for totals in (together, each)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {},  # computed by nothing
        {"compute": lambda forward: None},  # nothing to divide by
        {"on_logits": lambda inputs: None, "elements": lambda reader, student: None},
    ],
)
def test_an_entry_that_is_not_complete_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        Term(meaning="weight of nothing.", weight=1.0, **wrong)
