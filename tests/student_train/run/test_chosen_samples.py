"""Training restricted to the samples of a list: counts, order, resume, mixtures, validation, and what is refused."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import StoreError, StoreReader
from alignkd.storage.tools.select.choose import Choice, choose
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.mixture import mixture_of
from alignkd.student_train.run.plan import plan_run
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
MakeList = Callable[..., Path]


@pytest.fixture
def make_list(tmp_path: Path) -> MakeList:
    """make_list(store, ratio): the samples of the lowest perplexity."""

    def make(store: Path, ratio: float = 0.5, name: str = "list.json") -> Path:
        choice = Choice(by="perplexity", ratio=ratio)
        chosen = choose(StoreReader(store), choice, lambda what, total: nullcontext(lambda done: None))
        chosen.selection.write(tmp_path / name)
        return tmp_path / name

    return make


def kept_of(store: Path, samples: Path) -> set[int]:
    from alignkd.storage.tools.select.selection import Selection

    return set(Selection.read(samples).positions(StoreReader(store)).tolist())


def test_only_chosen_samples_are_seen(many_store: Path, make_job: MakeJob, make_list: MakeList) -> None:
    """Every pass has each of them once; the length in passes counts them alone."""
    samples = make_list(many_store)
    job = make_job((TrainStore(path=many_store, samples=samples),), steps=None, epochs=4.0, micro_batch=5)
    plan = plan_run(job, start_ranks())
    kept = kept_of(many_store, samples)
    assert len(kept) == 5 == plan.mixture.per_pass == mixture_of(job).per_pass
    assert plan.config.num_steps == 4
    for step in range(4):
        assert set(plan.order.global_batch_indices(step).tolist()) == kept
    assert "5 of 10 samples, chosen by perplexity" in next(plan.mixture.lines())
    result = train(job)
    assert result.samples_seen == 20


def test_a_list_of_all_samples_changes_nothing(
    many_store: Path, make_job: MakeJob, make_list: MakeList, tmp_path: Path, read_metrics: ReadMetrics
) -> None:
    listed = TrainStore(path=many_store, samples=make_list(many_store, 1.0))
    train(make_job(many_store, output=tmp_path / "all", steps=3))
    train(make_job((listed,), output=tmp_path / "listed", steps=3))
    assert read_metrics(tmp_path / "all") == read_metrics(tmp_path / "listed")


def test_resumed_and_unbroken(
    many_store: Path,
    make_job: MakeJob,
    make_list: MakeList,
    tmp_path: Path,
    read_metrics: ReadMetrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stop after two steps leaves the samples of all later steps what they were; another list is another run."""
    from alignkd.student_train import trainer

    stores = (TrainStore(path=many_store, samples=make_list(many_store)),)
    settings: dict[str, Any] = {"steps": 4, "checkpoint_every": 1}
    train(make_job(stores, output=tmp_path / "unbroken", **settings))

    class StoppedError(RuntimeError):
        pass

    saved = trainer.save_checkpoint

    def stop_after_two(*arguments: Any, **named: Any) -> None:
        saved(*arguments, **named)
        if arguments[2].step == 2:
            raise StoppedError

    broken = make_job(stores, output=tmp_path / "broken", **settings)
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "save_checkpoint", stop_after_two)
        with pytest.raises(StoppedError):
            train(broken)
    other = TrainStore(path=many_store, samples=make_list(many_store, 0.7, "other.json"))
    with pytest.raises(TrainError, match=r"samples was [0-9a-f]{16}, is [0-9a-f]{16}"):
        train(make_job((other,), output=tmp_path / "broken", **settings))
    with pytest.raises(TrainError, match=r"samples was [0-9a-f]{16}, is None"):
        train(make_job(many_store, output=tmp_path / "broken", **settings))
    train(broken)
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "unbroken")


def test_one_list_in_a_mixture(
    dump: Any, many_samples: Any, make_job: MakeJob, make_list: MakeList, tmp_path: Path
) -> None:
    """Shares hold for the chosen samples; the other store is complete."""
    six, four = dump(tmp_path / "six", many_samples[:6]), dump(tmp_path / "four", many_samples[6:])
    samples = make_list(six)
    stores = (TrainStore(path=six, samples=samples, share=0.5), TrainStore(path=four, share=0.5))
    plan = plan_run(make_job(stores, steps=6, micro_batch=6), start_ranks())
    assert [row["samples"] for row in plan.mixture.rows()] == [3, 4]
    assert [row["per_pass"] for row in plan.mixture.rows()] == [3, 3]
    seen = np.concatenate([plan.order.global_batch_indices(step) for step in range(4)])
    assert set(seen[seen < 6].tolist()) == kept_of(six, samples) and set(seen[seen >= 6].tolist()) == {6, 7, 8, 9}


def test_validation_has_the_samples_that_it_has_without_a_list(
    many_store: Path, make_job: MakeJob, make_list: MakeList
) -> None:
    """So runs with different lists can be compared; no held-out sample is trained on."""
    samples = make_list(many_store)
    job = make_job((TrainStore(path=many_store, samples=samples),), validation={"share": 0.4})
    plan = plan_run(job, start_ranks())
    whole = plan_run(make_job(many_store, validation={"share": 0.4}), start_ranks())
    np.testing.assert_array_equal(plan.held_out, whole.held_out)
    assert set(plan.mixture.trained.tolist()) == kept_of(many_store, samples) - set(plan.held_out.tolist())


def test_what_is_refused(many_store: Path, exact_store: Path, make_job: MakeJob, make_list: MakeList) -> None:
    foreign = TrainStore(path=many_store, samples=make_list(exact_store))
    with pytest.raises(StoreError, match=r"samples .*list\.json: was made for 4 samples .* has 10 samples"):
        plan_run(make_job((foreign,)), start_ranks())
    nothing = TrainStore(path=many_store, samples=make_list(many_store, 0.0))
    with pytest.raises(TrainError, match=r"none of 10 samples is trained on; .*list\.json keeps none"):
        plan_run(make_job((nothing,)), start_ranks())
