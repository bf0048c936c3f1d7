"""One run from several stores: order, weights, agreement, figures by source, kills and ranks."""

import json
import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes_of_two import ended, run_two

from alignkd.storage import Codecs, LogitsCodec, StoreReader
from alignkd.storage.tools.merge import merge_stores
from alignkd.student_train.checkpoints.checkpoint import check_same_settings
from alignkd.student_train.data.samples import dataset, sources
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.run import mixture
from alignkd.student_train.run.checks import fit as checks
from alignkd.student_train.run.plan import plan_run
from alignkd.student_train.run.student import build_student
from alignkd.student_train.stores import TrainStore, store_problems, store_weights
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def halves(dump: Any, many_samples: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Six and four samples of the ten."""
    folder = tmp_path_factory.mktemp("halves")
    return dump(folder / "six", many_samples[:6]), dump(folder / "four", many_samples[6:])


def listed(*paths: Path, **settings: Any) -> tuple[TrainStore, ...]:
    """Stores with these `weight`s or `share`s."""
    (name, values), *_ = settings.items() if settings else [("weight", [1.0] * len(paths))]
    return tuple(TrainStore(path=path, **{name: value}) for path, value in zip(paths, values, strict=True))


def test_two_stores_are_the_merged_store(
    halves: tuple[Path, Path], make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """A batch of all samples has the same losses, and they add up over the sources."""
    merge_stores(halves, tmp_path / "merged")
    settings: dict[str, Any] = {"steps": 3, "micro_batch": 5, "global_batch": 10}
    job = make_job(listed(*halves), output=tmp_path / "two", **settings)
    result = train(job)
    train(make_job(tmp_path / "merged", output=tmp_path / "one", **settings))
    plan = plan_run(job, start_ranks())
    model = build_student(job, plan.student, plan.reader).model.config
    counts = GlobalCounts(plan.samples.readers, model, job.train.losses.weights)
    for line, merged in zip(read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one"), strict=True):
        by_source = line.pop("by_source")
        assert line == pytest.approx(merged, rel=1e-4)
        assert [by_source[name]["samples"] for name in ("six", "four")] == [6, 4]
        elements = {"six": counts(np.arange(6)), "four": counts(np.arange(6, 10))}
        for term in job.train.losses.weights:
            sums = sum(by_source[name][term] * elements[name][term] for name in elements)
            assert sums / sum(found[term] for found in elements.values()) == pytest.approx(line[term], rel=1e-6)
        for figures in by_source.values():
            expected = sum(weight * figures[term] for term, weight in job.train.losses.weights.items())
            assert figures["loss"] == pytest.approx(expected, rel=1e-12)
    assert result.samples_by_source == {"six": 18, "four": 12}


def test_a_list_of_one_store_is_that_store(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    """Also for a run that was started before there were lists: the settings of its checkpoint are the same."""
    result = train(make_job(many_store, steps=3))
    assert result.samples_by_source == {} and "by_source" not in result.metrics
    again = train(make_job((TrainStore(path=many_store, name="other"),), steps=3))
    assert again.already_finished and again.metrics == result.metrics
    with pytest.raises(TrainError, match=r"weights was None, is \[2.0\]"):
        train(make_job((TrainStore(path=many_store, weight=2.0),), steps=3))


def test_weights_and_shares_decide_how_often_samples_are_seen(
    halves: tuple[Path, Path], make_job: MakeJob, read_metrics: ReadMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(listed(*halves, weight=[0.5, 2.0]), steps=None, epochs=2, micro_batch=1, global_batch=11)
    with caplog.at_level(logging.INFO):
        result = train(job)
    assert "source six: 6 samples, each seen 0.5 times per pass: 3 of 11 samples (27.3%)" in caplog.text
    assert "source four: 4 samples, each seen 2 times per pass: 8 of 11 samples (72.7%)" in caplog.text
    assert "22 samples, 2 passes over 11" in caplog.text
    assert result.samples_by_source == {"six": 6, "four": 16} and result.samples_seen == 22
    lines = read_metrics(job.train.output)
    assert [line["by_source"]["four"]["samples"] for line in lines] == [8, 8]
    plan = plan_run(job, start_ranks())
    seen = np.bincount(np.concatenate([plan.order.global_batch_indices(step) for step in range(2)]), minlength=10)
    assert seen.tolist() == [1] * 6 + [4] * 4
    with pytest.raises(
        TrainError, match=r"store.1.weights was \[2.0\], is \[1.0\]|store.1.weights was \[2.0\], is None"
    ):
        train(make_job(listed(*halves), steps=2, micro_batch=1, global_batch=11))


def test_shares_become_weights_so_that_the_scarcest_store_is_seen_once() -> None:
    stores = listed(Path("a"), Path("b"), share=[0.75, 0.25])
    assert store_weights(stores, [300, 500]) == pytest.approx([1.0, 0.2])
    assert store_weights(stores, [3000, 500]) == pytest.approx([0.5, 1.0])
    assert store_weights(listed(Path("a"), Path("b"), weight=[3.0, 0.5]), [1, 1]) == [3.0, 0.5]


@pytest.mark.parametrize(
    ("stores", "problem"),
    [
        ([], "the list of stores is empty"),
        ([TrainStore(path="x/a"), TrainStore(path="y/a")], "2 stores have the name 'a'; give each a `name`"),
        ([TrainStore(path="a"), TrainStore(path="a/", name="b")], "store a is listed 2 times"),
        ([TrainStore(path="a", share=0.5), TrainStore(path="b")], "store b has no share, but others have"),
        ([TrainStore(path="a", share=0.5), TrainStore(path="b", share=0.4)], "sum to 0.9, expected 1"),
        ([TrainStore(path="a", share=1.0, weight=2.0)], "weight is 2.0 and share 1.0; give one of them"),
        ([TrainStore(path="a", weight=0.0)], "weight must be above 0"),
    ],
)
def test_lists_that_make_no_sense(stores: list[TrainStore], problem: str) -> None:
    assert any(problem in found for found in store_problems(stores)), store_problems(stores)


def test_stores_that_do_not_fit_together_are_refused(
    halves: tuple[Path, Path], dump: Any, many_samples: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    six, rest = halves[0], many_samples[6:]
    other = dump(tmp_path / "other", rest, fingerprint={"weights": "another teacher"})
    with pytest.raises(
        TrainError,
        match=r"stores \S+six and \S+other do not fit together: fingerprint weights is golden and another teacher; ",
    ):
        train(make_job(listed(six, other)))
    exact = StoreReader(six).manifest.codecs
    draws = exact.model_copy(update={"logits": LogitsCodec(kind="sampled", num_draws=8)})
    sampled = dump(tmp_path / "sampled", rest, codecs=draws)
    with pytest.raises(TrainError, match=r"the form of logits is full and sampled with 8 draws"):
        train(make_job(listed(six, sampled), losses={"logit_divergence": "forward_kl"}))
    bare = dump(tmp_path / "bare", rest, codecs=exact.model_copy(update={"attention": "none"}))
    with pytest.raises(
        TrainError, match=r"losses.attention is 1.0, but store \S+bare was dumped with codecs.attention"
    ):
        train(make_job(listed(six, bare)))
    result = train(make_job(listed(six, bare), steps=1, losses={"attention": 0.0}))
    assert result.step == 1


def test_codecs_may_differ(
    halves: tuple[Path, Path],
    dump: Any,
    many_samples: Any,
    make_job: MakeJob,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """Their batches are decoded: losses are those of exact targets within what the codecs round."""
    codecs = Codecs(
        attention="sqrt_u8",
        vision_top="int8_channel",
        vision_all="int8_channel",
        logits=LogitsCodec(kind="full", dtype="float16"),
    )
    rounded = dump(tmp_path / "four", many_samples[6:], codecs=codecs)
    settings: dict[str, Any] = {"steps": 1, "micro_batch": 10}
    for name, second in (("exact", halves[1]), ("mixed", rounded)):
        train(make_job(listed(halves[0], second), output=tmp_path / name, **settings))
    (exact,), (mixed,) = (read_metrics(tmp_path / name) for name in ("exact", "mixed"))
    assert mixed["loss"] != exact["loss"] and mixed["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert mixed["by_source"]["six"] == pytest.approx(exact["by_source"]["six"], rel=1e-5)


def test_a_store_that_has_grown_is_named() -> None:
    """In place of hashes that nobody can restore; another difference is reported as before."""
    found = {"store.0.name": "a", "store.0.manifest_hash": "1", "store.0.num_records": 8, "seed": 0}
    asked = {**found, "store.0.manifest_hash": "2", "store.0.num_records": 9}
    with pytest.raises(TrainError, match=r"started when store a had 8 samples, now it has 9 .*choose another output"):
        check_same_settings(Path("out"), found, asked)
    with pytest.raises(TrainError, match=r"manifest_hash was 1, is 2; .*restore them"):
        check_same_settings(Path("out"), found, {**asked, "store.0.num_records": 7})
    with pytest.raises(TrainError, match=r"seed was 0, is 1; store.0.manifest_hash was 1"):
        check_same_settings(Path("out"), found, {**asked, "seed": 1})


@pytest.mark.parametrize("settings", [{"share": [0.5, 0.5]}, {"weight": [2.0, 1.0]}])
def test_a_store_without_a_sample_to_train_on_is_refused(
    settings: dict[str, list[float]], halves: tuple[Path, Path], make_job: MakeJob
) -> None:
    """A share of nothing has no weight."""
    readers = [StoreReader(path) for path in halves]
    held_out = np.arange(len(readers[0]))
    with pytest.raises(TrainError, match=rf"store {halves[0].name}: none of {len(held_out)} samples is trained on"):
        mixture.Mixture.of(listed(*halves, **settings), readers, {}, held_out=held_out)


def test_samples_that_two_stores_have_are_counted(
    halves: tuple[Path, Path], many_store: Path, make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(make_job(listed(many_store, halves[1]), steps=1))
    assert "4 samples are in more than one of the stores" in caplog.text


def test_a_source_has_its_own_images_and_weight(
    halves: tuple[Path, Path], make_job: MakeJob, images_folder: Path, tmp_path: Path
) -> None:
    job = make_job(listed(*halves), steps=1, images=None)
    with pytest.raises(TrainError, match=r"store \S+six has inputs 'reference'"):
        train(job)
    job = replace(job, images_of={"six": images_folder, "four": images_folder}, source_weights={"four": 3.0})
    plan = plan_run(job, start_ranks())
    assert [row["per_pass"] for row in plan.mixture.rows()] == [6, 12]
    train(job)
    with pytest.raises(TrainError, match=r"data entry 'five' has weight 2\.0, but no store has a source of that name"):
        train(replace(job, source_weights={"five": 2.0}))


def test_killed_and_resumed_on_one_and_two_ranks(
    halves: tuple[Path, Path],
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """kill -9 and a resume are bit for bit the unbroken run; two ranks are one rank to rounding."""
    stores = listed(*halves, weight=[0.7, 1.5])
    settings: dict[str, Any] = {"steps": 6, "global_batch": 4, "checkpoint_every": 2}
    unbroken = make_job(stores, output=tmp_path / "unbroken", micro_batch=2, **settings)
    train(unbroken)
    job = make_job(stores, output=tmp_path / "killed", micro_batch=2, **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 4, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    weights = [(one.train.output / "student" / "model.safetensors").read_bytes() for one in (job, unbroken)]
    assert weights[0] == weights[1]

    two = make_job(stores, output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, two)
    for line, reference in zip(read_metrics(two.train.output), read_metrics(unbroken.train.output), strict=True):
        found, expected = line.pop("by_source"), reference.pop("by_source")
        assert line == pytest.approx(reference, rel=5e-5)
        for source, figures in expected.items():
            near = {name: value if value is None else pytest.approx(value, rel=5e-5) for name, value in figures.items()}
            assert found[source] == near


def test_figures_of_sources_are_in_tensorboard(halves: tuple[Path, Path], make_job: MakeJob) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = make_job(listed(*halves), steps=2, micro_batch=5)
    train(job)
    events = EventAccumulator(str(job.train.output / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (job.train.output / "metrics.jsonl").read_text().splitlines()]
    for source in ("six", "four"):
        for name in ("samples", "loss", "attention"):
            shown = [event.value for event in events.Scalars(f"source/{source}/{name}")]
            assert shown == pytest.approx([line["by_source"][source][name] for line in lines], rel=1e-6)


def test_sources_inside_a_store_have_weights_and_figures(
    halves: tuple[Path, Path], many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store may have samples of several data sets, in any order; weights of store and source are multiplied."""

    def by_parity(reader: StoreReader) -> tuple[list[str], Any]:
        return ["even", "odd"], np.arange(len(reader)) % 2

    for module in (sources, mixture, dataset, checks):
        monkeypatch.setattr(module, "sources_of", by_parity)
    job = replace(make_job(many_store, output=tmp_path / "one", steps=2, micro_batch=10), source_weights={"odd": 3.0})
    result = train(job)
    assert result.samples_by_source == plan_run(job, start_ranks()).sources.up_to(2, plan_run(job, start_ranks()).order)
    assert [row["per_pass"] for row in plan_run(job, start_ranks()).mixture.rows()] == [5, 15]
    assert result.samples_by_source == {"even": 5, "odd": 15}
    assert list(result.metrics["by_source"]) == ["even", "odd"]

    both = listed(many_store, halves[1], weight=[1.0, 2.0])
    plan = plan_run(replace(job, store=both), start_ranks())
    shown = {row["name"]: (row["samples"], row["weight"]) for row in plan.mixture.rows()}
    assert shown == {"many/even": (5, 1.0), "many/odd": (5, 3.0), "four/even": (2, 2.0), "four/odd": (2, 6.0)}
    # of equal shares, the larger effective size decides nothing but the length of a pass
    plan = plan_run(replace(job, store=listed(many_store, halves[1], share=[0.5, 0.5])), start_ranks())
    assert [row["per_pass"] for row in plan.mixture.rows()] == [2, 6, 2, 6]
