"""The figures of `validation.jsonl` are the losses of the samples, computed another way."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from processes_of_two import run_two

from alignkd.storage import StoreReader
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.held_out import fixed_subset, held_out_positions
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train
from alignkd.student_train.validation import samples as samples_module
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet

MakeJob = Callable[..., TrainJob]
SHARE = 0.3


def validation_lines(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def one_by_one(job: TrainJob, samples: TrainingSet, positions: Any) -> dict[str, float | None]:
    """Mean of each term over the samples, each in a batch of its own, with gradients as in training."""
    student = build_student(job, job.open_student(), samples.reader)
    totals, counts = dict.fromkeys(LossConfig().weights, 0.0), dict.fromkeys(LossConfig().weights, 0)
    for position in positions:
        batch = collate(
            [samples[int(position)]], targets={*job.train.losses.needed_targets.values()}, attention_pairs="tqv"
        )
        for name, term in student(batch).items():
            totals[name] += float(term.total.detach())
            counts[name] += term.count
    return {name: totals[name] / counts[name] if counts[name] else None for name in LossConfig().weights}


def assert_same_terms(line: dict[str, Any], expected: dict[str, float | None], weights: dict[str, float]) -> None:
    for name, value in expected.items():
        assert line[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name
    assert line["loss"] == pytest.approx(sum(weights[name] * (line[name] or 0) for name in weights), rel=1e-9)


def exported(job: TrainJob) -> TrainJob:
    """The job of a run that starts from the student and adapters of another."""
    config = job.train.model_copy(update={"adapters": job.train.output / "adapters.safetensors"})
    return TrainJob(**vars(job) | {"student": job.train.output / "student", "train": config})


def test_a_held_out_share(many_store: Path, make_job: MakeJob, read_metrics: Any) -> None:
    job = make_job(
        many_store, steps=None, epochs=1, micro_batch=1, validation={"share": SHARE, "every": 4, "export": "last"}
    )
    samples = open_samples(job, job.open_student())
    held = held_out_positions(samples, SHARE)
    assert 0 < len(held) < 10
    result = train(job)
    steps = 10 - len(held)
    assert (result.step, result.samples_seen) == (steps, steps)
    lines = validation_lines(job.train.output)
    assert [line["step"] for line in lines] == [0, *range(4, steps, 4), steps]
    weights = job.train.losses.weights
    assert_same_terms(lines[0], one_by_one(job, samples, held), weights)
    assert_same_terms(lines[-1], one_by_one(exported(job), samples, held), weights)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_training_store_before_the_first_step_has_the_losses_of_the_first_step(
    many_store: Path, make_job: MakeJob, read_metrics: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And no step of the training notices the validations; with data workers and another micro-batch."""
    settings: dict[str, Any] = {"steps": 2, "micro_batch": 5, "global_batch": 10}
    plain = make_job(many_store, output=tmp_path / "plain", **settings)
    train(plain)
    validation = {"store": str(many_store), "every": 1, "micro_batch": 3, "export": "last"}
    job = make_job(many_store, output=tmp_path / "validated", data_workers=2, validation=validation, **settings)
    result = train(job)
    assert f"10 of 10 samples of store {many_store} are also trained on" in caplog.text
    assert read_metrics(tmp_path / "validated") == read_metrics(tmp_path / "plain")
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (tmp_path / "validated" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    steps, lines = read_metrics(tmp_path / "plain"), validation_lines(tmp_path / "validated")
    assert [line["step"] for line in lines] == [0, 1, 2]
    for before, step in zip(lines, steps, strict=False):  # the losses of a step are those of the state before it
        for name in ("loss", *LossConfig().weights):
            assert before[name] == pytest.approx(step[name], rel=1e-5), (step["step"], name)
    best = min(lines[1:], key=lambda line: line["loss"])
    assert (lines[-1]["best_step"], lines[-1]["best"]) == (best["step"], best["loss"])
    assert result.validation is not None and result.validation.last == lines[-1]["loss"]
    _check_tensorboard(tmp_path / "validated", lines)


def _check_tensorboard(output: Path, lines: list[dict[str, Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard")).Reload()
    for name in ("loss", *LossConfig().weights):
        shown = events.Scalars("validation/total" if name == "loss" else f"validation/{name}")
        assert {event.step: event.value for event in shown} == pytest.approx(
            {line["step"]: line[name] for line in lines}, rel=1e-6
        )
    assert "validation/best" not in events.Tags()["scalars"]


def test_data_without_targets_has_the_supervised_loss(
    many_store: Path,
    many_samples: Any,
    make_job: MakeJob,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Unusable samples are counted and listed with their reasons; the loss of the others is that of a store."""
    broken = [
        {"id": "gone", "image": "gone.png", "conversations": many_samples[0]["conversations"]},
        {"id": "no turns"},
        {"id": "gone too", "image": "gone.png", "conversations": many_samples[0]["conversations"]},
    ]
    data = tmp_path / "validation.json"
    data.write_text(json.dumps([*broken, *many_samples]))
    both = {"steps": 2, "global_batch": 4}
    stored = make_job(many_store, output=tmp_path / "stored", validation={"store": str(many_store)}, **both)
    train(stored)
    section = {"data": {"conversations": str(data)}, "micro_batch": 3}
    with caplog.at_level("INFO"):
        result = train(make_job(many_store, output=tmp_path / "raw", validation=section, data_workers=1, **both))
    found, expected = validation_lines(tmp_path / "raw"), validation_lines(tmp_path / "stored")
    for line, reference in zip(found, expected, strict=True):
        assert line["supervised"] == line["loss"] == pytest.approx(reference["supervised"], rel=1e-5)
        assert (line["samples"], line["unusable"]) == (10, 3)
        assert not {*LossConfig().weights} - {"supervised"} & line.keys()
    assert result.validation is not None and result.validation.figure == "supervised"
    assert "terms without a teacher: supervised" in caplog.text
    (warning,) = [text for text in caplog.messages if "cannot be used" in text]
    assert warning.startswith("validation: 3 of 13 samples cannot be used: 2 x ")
    assert "image cannot be read" in warning and "(first: 'gone' (index 0))" in warning and "'no turns'" in warning


def test_an_image_without_a_folder_is_unusable_beside_one_in_the_data(tmp_path: Path) -> None:
    parts = [{"type": "image", "image": {"bytes": "aGVsbG8=", "path": "a.png"}}, {"type": "image", "image": "b.png"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "two"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "mixed", "messages": messages}) + "\n")
    found = samples_module._example(open_data(DataSet(path=tmp_path / "data.jsonl")), Mock(), 0)
    assert isinstance(found, samples_module.Unusable) and "there is no image folder" in found.reason


def test_data_without_a_usable_sample_is_refused(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    data = tmp_path / "validation.json"
    data.write_text(json.dumps([{"id": "no turns"}]))
    job = make_job(many_store, validation={"data": {"conversations": str(data)}})
    with pytest.raises(TrainError, match=r"none of 1 samples can be used: 1 x .*\(first: 'no turns' \(index 0\)\)"):
        train(job)


def test_another_store_must_be_of_the_same_teacher(
    many_store: Path, dump: Any, many_samples: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    other = dump(tmp_path / "other", many_samples[:2], fingerprint={"weights": "other"})
    with pytest.raises(TrainError, match=r"validation.store: stores .*: fingerprint weights is golden and other;"):
        train(make_job(many_store, validation={"store": str(other)}))


def test_a_figure_without_an_element_is_one_line(
    many_store: Path, dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    """Samples without an image have no attention; their loss has the other terms."""
    text_only = dump(tmp_path / "text", [sample for sample in v1_samples if "image" not in sample])
    train(make_job(many_store, steps=1, validation={"store": str(text_only)}, output=tmp_path / "loss"))
    for line in validation_lines(tmp_path / "loss"):
        assert line["attention"] is None and line["vision_all"] is None and line["supervised"] > 0
    job = make_job(many_store, steps=1, validation={"store": str(text_only), "figure": "attention"})
    with pytest.raises(TrainError, match="figure is 'attention', but none of the 1 validation samples has an element"):
        train(job)


def test_two_ranks_are_one(many_store: Path, make_job: MakeJob, start_child: Any, tmp_path: Path) -> None:
    """Seven samples in passes of two and of two times three: one rank has nothing to do in the last pass."""
    settings: dict[str, Any] = {"steps": 2, "global_batch": 6, "micro_batch": 3}
    section = {"store": str(many_store), "max_samples": 7, "export": "last"}
    train(make_job(many_store, output=tmp_path / "alone", validation=section | {"micro_batch": 2}, **settings))
    job = make_job(many_store, output=tmp_path / "two", validation=section, **settings)
    run_two(start_child, job)
    for line, reference in zip(validation_lines(tmp_path / "two"), validation_lines(tmp_path / "alone"), strict=True):
        assert line["samples"] == 7
        for name, value in reference.items():
            assert line[name] == (value if value is None else pytest.approx(value, rel=5e-5)), name


def test_the_subset_is_fixed(many_store: Path, make_job: MakeJob) -> None:
    """Fewer samples are a part of more, and a sample is held out whatever else is in the store."""
    job = make_job(many_store)
    samples = open_samples(job, job.open_student())
    every = np.arange(10)
    chosen = [set(fixed_subset(samples, every, most).tolist()) for most in range(1, 11)]
    assert all(fewer < more for fewer, more in itertools.pairwise(chosen))
    shares = [set(held_out_positions(samples, share).tolist()) for share in (0.3, 0.5, 0.7)]
    assert shares == [chosen[len(share) - 1] for share in shares]
    keys = StoreReader(many_store).keys
    assert shares[1] == {place for place, key in enumerate(keys) if int(key[:16], 16) < 2**63}


@pytest.mark.parametrize(("share", "named"), [(1e-9, "holds out none of 10 samples"), (1 - 1e-9, "holds out all 10")])
def test_a_share_that_leaves_nothing_is_refused(share: float, named: str, many_store: Path, make_job: MakeJob) -> None:
    with pytest.raises(TrainError, match=named):
        train(make_job(many_store, validation={"share": share}))
