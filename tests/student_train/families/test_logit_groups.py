"""`losses.logit_groups`: means of the positions where the image helps most and of the others, from dump to training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes_of_two import run_two

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.storage import StoreReader, as_float32
from alignkd.student_train.data.loader import load_batch
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.job import TrainJob
from alignkd.student_train.losses.logits.advantage_groups import group_factors, high_positions
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.logits.group_sizes import GroupSizes
from alignkd.student_train.run.plan import plan_run
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train

ReadMetrics = Callable[[Path], list[dict[str, Any]]]
LOSSES = {"attention": 0, "vision_all": 0, "vision_top": 0, "supervised": 0.5, "logit": 1.0}
GROUPED = LOSSES | {"logit_groups": "visual_advantage", "logit_group_share": 0.4}
COUNTERFACTUAL = {"remove": "image", "entries": 16}


@pytest.fixture
def grouped_job(family_job: Callable[..., TrainJob], family_store: Callable[..., Path]) -> Callable[..., TrainJob]:
    """grouped_job(logits, **train settings): a run whose logit loss has groups."""

    def make(logits: dict[str, Any], **train: Any) -> TrainJob:
        kept = {"attention": "none", "vision_top": "none", "vision_all": "none"}
        store = family_store("qwen3_vl", counterfactual=COUNTERFACTUAL, logits=logits, **kept)
        return family_job("qwen3_vl", store=store, **{"losses": GROUPED, **train})

    return make


@pytest.mark.parametrize("logits", [{"kind": "hidden"}, {"kind": "topk", "top_k": 8}])
def test_the_loss_is_the_sum_of_two_means(grouped_job: Callable[..., TrainJob], logits: dict[str, Any]) -> None:
    """Against the plain term's values at each position, split by a loop over the samples; text-only samples are low."""
    job = grouped_job(logits)
    plan = plan_run(job, start_ranks())
    positions = np.arange(len(plan.samples))
    student = build_student(job, plan.student, plan.reader).eval()
    plain = job.train.losses.model_copy(update={"logit_groups": None})
    high, low = [], []
    for position in positions:
        _, record = plan.samples[int(position)]
        student.losses = plain
        batch = load_batch(plan.samples, positions[position : position + 1], targets={"logits"}, stem=None)
        values = _values(student, batch)
        ranked: list[int] = []
        if record.has_image:
            advantage = as_float32(record.more["visual_advantage"])  # type: ignore[arg-type]
            ranked = np.argsort(-advantage, kind="stable")[: int(0.4 * len(advantage))].tolist()
        high += [value for place, value in enumerate(values) if place in ranked]
        low += [value for place, value in enumerate(values) if place not in ranked]
    assert len(high) > 3 and any(not plan.samples[int(one)][1].has_image for one in positions)
    student.losses = job.train.losses
    sizes = GroupSizes(plan.samples.readers, 0.4)(positions)
    assert sizes == (len(high), len(low))
    total = 0.0
    for part in (positions[:3], positions[3:]):  # two micro-batches of one global batch
        batch = load_batch(plan.samples, part, targets={"logits"}, stem=None, high_share=0.4)
        student.group_sizes = sizes
        total += float(student(batch)["logit"].total.detach())
    assert total / (len(high) + len(low)) == pytest.approx(np.mean(high) + np.mean(low), rel=1e-4)


def _values(student: Any, batch: Any) -> list[float]:
    """The logit loss at each position, before the positions of a sample are added up."""
    by_sample = LossSum.by_sample
    parts: list[torch.Tensor] = []

    def keep(self: LossSum, samples: torch.Tensor, num_samples: int) -> LossSum:
        parts.append(self.parts.detach())
        return by_sample(self, samples, num_samples)

    try:
        LossSum.by_sample = keep  # type: ignore[method-assign]
        student(batch)
    finally:
        LossSum.by_sample = by_sample  # type: ignore[method-assign]
    found: list[float] = parts[1].tolist()  # supervised comes first in the table
    return found


def test_ranks_and_micro_batches_do_not_matter(
    grouped_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """The sizes of the groups are those of the global batch; validation reports the plain mean."""
    settings: dict[str, Any] = {"steps": 3, "global_batch": 4, "validation": {"share": 0.3, "figure": "logit"}}
    alone = grouped_job({"kind": "hidden"}, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    two = grouped_job({"kind": "hidden"}, output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, two)
    for line, reference in zip(*(read_metrics(one.train.output) for one in (two, alone)), strict=True):
        assert line["logit"] == pytest.approx(reference["logit"], rel=5e-5)
    plain = grouped_job(
        {"kind": "hidden"}, output=tmp_path / "plain", micro_batch=4, losses=LOSSES, **settings | {"steps": 1}
    )
    train(plain)
    first = [(one.train.output / "validation.jsonl").read_text().splitlines()[0] for one in (plain, alone)]
    untimed = [line.partition('"seconds"')[0] for line in first]
    assert untimed[0] == untimed[1]
    assert read_metrics(plain.train.output)[0]["logit"] != pytest.approx(read_metrics(alone.train.output)[0]["logit"])


def test_the_formula_against_a_loop() -> None:
    rng = np.random.default_rng(1)
    for number, share in ((1, 0.5), (7, 0.0), (9, 1.0), (12, 0.3)):
        advantage, values = np.round(rng.normal(size=number), 1), rng.normal(size=number)
        ranked = sorted(range(number), key=lambda n: (-advantage[n], n))[: int(round(share * number, 6))]
        assert np.flatnonzero(high_positions(advantage, share)).tolist() == sorted(ranked)
        high = [values[n] for n in ranked]
        low = [values[n] for n in range(number) if n not in ranked]
        expected = (np.mean(high) if high else 0) + (np.mean(low) if low else 0)
        factors = group_factors(torch.from_numpy(high_positions(advantage, share)), len(high), len(low)).numpy()
        assert (values * factors).sum() / number == pytest.approx(expected, rel=1e-12)


def test_what_is_refused(family_job: Callable[..., TrainJob]) -> None:
    with pytest.raises(
        ValueError, match=r"losses.logit_groups is 'visual_advantage', but store \S+ keeps no visual_adv"
    ):
        train(family_job("qwen3_vl", losses=GROUPED))
    with pytest.raises(ValueError, match="logit is 0, so there is no logit loss"):
        family_job("qwen3_vl", losses=GROUPED | {"logit": 0})
    with pytest.raises(ValueError, match=r"logit_group_share is 0\.4, but logit_groups is not given"):
        family_job("qwen3_vl", losses=LOSSES | {"logit_group_share": 0.4})
    sections = {
        "data": {"conversations": "c.json", "images": "i"},
        "student": {"checkpoint": "s"},
        "teacher": {"checkpoint": "t"},
        "store": {"path": "store"},
        "train": {"output": "o", "steps": 1, "losses": GROUPED},
    }
    with pytest.raises(ValueError, match=r"pass is not stored; leave it out or set store\.counterfactual"):
        RunConfig.model_validate(sections)


def test_a_store_is_selected_by_its_visual_advantage(grouped_job: Callable[..., TrainJob]) -> None:
    """Scores of a real dump: the mean over the labels of each record with images."""
    from alignkd.storage.tools.select.scan import advantage_scores, mean_nlls

    reader = StoreReader(grouped_job({"kind": "hidden"}).stores[0].path)
    scores = advantage_scores(reader)
    for position, record in enumerate(reader):
        stored = record.more.get("visual_advantage")
        expected = np.nan if stored is None else as_float32(stored).mean(dtype=np.float64)  # type: ignore[arg-type]
        assert scores[position] == pytest.approx(expected, nan_ok=True)
    nll = mean_nlls(reader)  # from the stored sum
    for position in range(len(reader)):
        record = reader[position]
        labels = record.labels[1:][record.labels[1:] != -100]
        logprobs = reader.logprobs(position).of(labels)
        assert nll[position] == pytest.approx(-logprobs.mean(dtype=np.float64), rel=1e-3)
