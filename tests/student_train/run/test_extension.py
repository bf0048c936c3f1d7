"""`train.extend`: the added steps are those that a longer run would have, apart from the learning rate."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes_of_two import ended, run_two
from pydantic import ValidationError
from safetensors.torch import load_file

from alignkd.storage import SampleOrder
from alignkd.storage.files.exclusive import Lock
from alignkd.storage.schema.sealed_json import seal, unseal
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.engine.schedule import Schedule, learning_rate_factor
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run import extension
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
SETTINGS: dict[str, Any] = {"micro_batch": 2, "global_batch": 4}


@pytest.fixture(scope="module")
def short_run(many_store: Path, golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished run of three steps, only to be read."""
    output = tmp_path_factory.mktemp("short")
    config = TrainConfig(output=output, steps=3, learning_rate=1e-3, checkpoint_every=1, **SETTINGS)
    train(
        TrainJob(
            student=golden_folder / "student",
            vision_config=golden_folder / "clip",
            images=golden_folder.parent / "images",
            store=many_store,
            train=config,
        )
    )
    return config.output


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(
    first_step=st.integers(1, 1000),
    added=st.integers(1, 1000),
    factor=st.floats(1e-6, 10),
    warmup_ratio=st.floats(0, 1),
)
def test_schedules_of_added_steps(first_step: int, added: int, factor: float, warmup_ratio: float) -> None:
    """`restart` is the schedule of a run of the added steps; `linear` falls by equal amounts from `factor` to 0."""

    def rates(kind: Any) -> list[float]:
        steps = first_step + added
        schedule = Schedule(steps=steps, warmup_ratio=warmup_ratio, first_step=first_step, kind=kind, factor=factor)
        return [schedule(step) for step in range(first_step, steps)]

    alone = [factor * learning_rate_factor(step, steps=added, warmup_ratio=warmup_ratio) for step in range(added)]
    assert rates("restart") == alone
    assert rates("constant") == [factor] * added
    np.testing.assert_allclose(rates("linear"), np.linspace(factor, 0, added + 1)[:-1], rtol=1e-9)


@pytest.mark.parametrize("chosen", [{}, {"learning_rate": 5e-4}])
def test_constant_steps_are_those_of_a_longer_run(
    chosen: dict[str, Any], many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """A run whose rate stays 1 is extended by steps at the same rate: bit for bit the run of four steps.

    With warm-up over all steps, the last rate is the peak. The first two steps of the longer run have the same rates
    because its warm-up is patched to be as long.
    """
    flat = {**SETTINGS, "warmup_ratio": 1.0}
    train(make_job(many_store, output=tmp_path / "old", steps=2, **flat))
    before = everything_in(tmp_path / "old")
    extend = {"run": tmp_path / "old", "schedule": "constant", **chosen}
    job = make_job(many_store, output=tmp_path / "new", steps=4, **flat, extend=extend)
    result = train(job)
    assert (result.step, result.samples_seen) == (4, 16)
    assert everything_in(tmp_path / "old") == before

    rates = [1e-3 / 2, 1e-3] + [chosen.get("learning_rate", 1e-3)] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "__call__", lambda self, step: rates[step] / 1e-3)
        train(make_job(many_store, output=tmp_path / "longer", steps=4, **flat))
    longer = read_metrics(tmp_path / "longer")
    assert read_metrics(tmp_path / "old") + read_metrics(tmp_path / "new") == longer
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "longer" / name).read_bytes()


def test_an_epoch_more(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`epochs: 2` on a run of `epochs: 1`: the second pass starts where the first ended, in the middle of a batch."""
    length = {"steps": None, **SETTINGS}
    train(make_job(many_store, output=tmp_path / "old", epochs=1, **length))
    extend = {"run": tmp_path / "old", "schedule": "restart", "learning_rate": 5e-4}
    job = make_job(many_store, output=tmp_path / "new", epochs=2, extend=extend, warmup_ratio=0.5, **length)
    with caplog.at_level("INFO"):
        result = train(job)
    assert f"extends {tmp_path / 'old'} from step 3 to 5: schedule restart, learning rate 0.0005" in caplog.text
    assert (result.step, result.samples_seen) == (5, 20)
    lines = [*read_metrics(tmp_path / "old"), *read_metrics(tmp_path / "new")]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["samples_seen"] for line in lines] == [4, 8, 12, 16, 20]
    old = [1e-3 * learning_rate_factor(step, steps=3, warmup_ratio=0.03) for step in range(3)]
    new = [5e-4 * learning_rate_factor(step, steps=2, warmup_ratio=0.5) for step in range(2)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(old + new)

    order = SampleOrder(10, 0, 4)
    seen = np.concatenate([order.global_batch_indices(step) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    images = [sum(line[f"samples_{kind}"] for line in lines) for kind in ("one_image", "text_only")]
    assert sum(images) == 20 and images == [sum(counts) for counts in zip(*kinds_of(many_store), strict=True)]


def kinds_of(store: Path) -> list[tuple[int, int]]:
    """Samples with an image and without one, for each of two passes."""
    from alignkd.storage import StoreReader

    has_image = StoreReader(store).has_image
    return [(int(has_image.sum()), int((~has_image).sum()))] * 2


def test_the_attention_decay_is_that_of_the_first_run(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """A run of four steps that stopped after the first one, extended, resumed and extended again."""
    losses = {"attention": 1000.0, "attention_decay": 1.0}
    settings: dict[str, Any] = {**SETTINGS, "losses": losses, "checkpoint_every": 1}
    train(make_job(many_store, output=tmp_path / "whole", steps=4, keep_checkpoints=4, **settings))
    expected = [line["attention_weight"] for line in read_metrics(tmp_path / "whole")]
    assert expected[0] == 1000.0 > expected[1] > expected[2] > expected[3] > 0
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", stopped)
    (stopped / "finished.json").unlink()
    for step in (2, 3, 4):
        shutil.rmtree(stopped / "checkpoints" / f"step-{step:08d}")

    extend = {"run": stopped, "schedule": "constant"}
    job = make_job(many_store, output=tmp_path / "longer", steps=6, extend=extend, **settings)
    train(job)
    shutil.rmtree(tmp_path / "longer" / "checkpoints" / "step-00000006")
    (tmp_path / "longer" / "finished.json").unlink()
    train(job)
    extend = {"run": tmp_path / "longer", "schedule": "constant"}
    train(make_job(many_store, output=tmp_path / "longest", steps=8, extend=extend, **settings))
    lines = [*read_metrics(tmp_path / "longer"), *read_metrics(tmp_path / "longest")]
    assert [line["attention_weight"] for line in lines] == [*expected[1:], 0.0, 0.0, 0.0, 0.0]


def test_linear_starts_at_the_last_rate_and_a_chain_of_extensions_goes_on(
    short_run: Path, many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    chain = [short_run, tmp_path / "second", tmp_path / "third"]
    for steps, before, output, schedule in (
        (5, chain[0], chain[1], {"schedule": "constant", "learning_rate": 6e-4}),
        (8, chain[1], chain[2], {"schedule": "linear"}),
    ):
        train(make_job(many_store, output=output, steps=steps, extend={"run": before, **schedule}, **SETTINGS))
    rates = [line["learning_rate"] for output in chain for line in read_metrics(output)]
    assert rates[3:] == pytest.approx([6e-4, 6e-4, 6e-4, 4e-4, 2e-4])
    assert [line["step"] for output in chain for line in read_metrics(output)] == list(range(1, 9))


def test_a_stopped_run_is_extended_from_its_last_checkpoint(
    many_store: Path, make_job: MakeJob, start_child: Any, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Stopped at step 2 of 6; the rate of step 2 falls to 0 at step 4."""
    stopped = make_job(many_store, output=tmp_path / "old", steps=6, **SETTINGS)
    ended(start_child(stopped, ("trainer", "_optimiser_step", 2, signal.SIGTERM)), 128 + signal.SIGTERM)
    extend = {"run": tmp_path / "old", "schedule": "linear"}
    train(make_job(many_store, output=tmp_path / "new", steps=4, extend=extend, **SETTINGS))
    last = 1e-3 * learning_rate_factor(1, steps=6, warmup_ratio=0.03)
    found = [(line["step"], line["learning_rate"]) for line in read_metrics(tmp_path / "new")]
    assert [step for step, _ in found] == [3, 4]
    assert [rate for _, rate in found] == pytest.approx([last, last / 2])


def test_an_extension_that_is_killed_and_resumed_is_the_unbroken_one(
    short_run: Path,
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tensorboard_equals_metrics: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    """kill -9 before its first checkpoint and after it; then the earlier run is not needed any more."""
    old = tmp_path / "old"
    shutil.copytree(short_run, old)
    extend = {"run": old, "schedule": "restart"}
    settings = {"steps": 7, "extend": extend, "checkpoint_every": 2, **SETTINGS}
    unbroken = make_job(many_store, output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = make_job(many_store, output=tmp_path / "killed", **settings)
    for blow in (("checkpoint", "save_tensors", 2, signal.SIGKILL), ("trainer", "_optimiser_step", 2, signal.SIGKILL)):
        ended(start_child(job, blow), -signal.SIGKILL)
        steps = sorted(path.name for path in (job.train.output / "checkpoints").glob("step-*"))
        assert steps == ([] if blow[0] == "checkpoint" else ["step-00000004"])
    shutil.rmtree(old)
    # in a child too: TensorBoard orders files of the same second by process number
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    tensorboard_equals_metrics(job.train.output)
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (job.train.output / name).read_bytes() == (unbroken.train.output / name).read_bytes()
    assert train(job).already_finished
    with pytest.raises(TrainError, match=r"extend\.schedule was restart, is linear"):
        train(
            make_job(many_store, output=tmp_path / "killed", **settings | {"extend": extend | {"schedule": "linear"}})
        )


def test_two_ranks_extend_as_one(
    short_run: Path,
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"steps": 6, "global_batch": 4, "extend": {"run": short_run, "schedule": "restart"}}
    alone = make_job(many_store, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = make_job(many_store, output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, job)
    found, expected = (read_metrics(one.train.output) for one in (job, alone))
    assert [line["step"] for line in found] == [4, 5, 6]
    for line, reference in zip(found, expected, strict=True):
        for figure, value in reference.items():
            assert line[figure] == (value if value is None else pytest.approx(value, rel=2e-5)), figure
    weights, reference = (load_file(one.train.output / "student" / "model.safetensors") for one in (job, alone))
    for key, value in reference.items():
        assert (weights[key] - value).abs().max() < 2e-4, key


def test_two_ranks_refuse_together(many_store: Path, make_job: MakeJob, start_child: Any, tmp_path: Path) -> None:
    """The first rank finds the problem; the other one must not wait for it."""
    job = make_job(many_store, steps=6, micro_batch=1, extend={"run": tmp_path / "nowhere", "schedule": "linear"})
    for errors in run_two(start_child, job, code=1):
        assert "nowhere is not a folder; give the output folder" in errors


def refused(make_job: MakeJob, store: Path, match: str, **train_settings: Any) -> None:
    """Training refuses in one line."""
    with pytest.raises(TrainError, match=match) as error:
        train(make_job(store, **SETTINGS | train_settings))
    assert "\n" not in str(error.value)


def test_what_cannot_be_extended_is_refused(
    short_run: Path, many_store: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    extend = {"run": short_run, "schedule": "linear"}
    longer = {"steps": 6, "extend": extend}
    refused(make_job, many_store, r"has done 3 steps, and the length of this run is 3 steps", steps=3, extend=extend)
    refused(make_job, many_store, r"other settings: gradient_clip was 1\.0, is 2\.0; seed was 0, is 1; restore", seed=1,
            gradient_clip=2.0, **longer)  # fmt: skip
    refused(make_job, many_store, "was started with another length: steps was 3, is 6; .* with train.extend",
            output=copied(short_run, tmp_path / "same"), steps=6, learning_rate=1e-3)  # fmt: skip
    refused(make_job, many_store, "holds a run that extends no other", output=copied(short_run, tmp_path / "own"),
            **longer)  # fmt: skip


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def test_an_earlier_run_without_a_usable_state_is_refused(
    short_run: Path, many_store: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    old = copied(short_run, tmp_path / "old")
    longer = {"steps": 6, "extend": {"run": old, "schedule": "linear"}}
    weights = next((old / "checkpoints" / "step-00000003").glob("weights-*"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    refused(make_job, many_store, "its last checkpoint step-00000003 is damaged .*bytes, expected", **longer)
    weights.write_bytes(whole)
    lock = Lock.take(old / "run.lock")
    assert lock is not None
    try:
        refused(make_job, many_store, r"is in use: process \d+ on host .* trains there since", **longer)
    finally:
        lock.release()
    shutil.rmtree(old / "checkpoints" / "step-00000003")
    refused(make_job, many_store, "has done 3 steps, but its last checkpoint is step-00000002; restore", **longer)
    shutil.rmtree(old / "checkpoints")
    refused(make_job, many_store, "has no checkpoint to go on from; give the output folder", **longer)
    assert not list((tmp_path / "out").glob("metrics*"))


def test_another_earlier_run_is_noticed_at_resume(
    short_run: Path, many_store: Path, make_job: MakeJob, start_child: Any, tmp_path: Path
) -> None:
    settings = {"steps": 5, **SETTINGS}
    job = make_job(many_store, **settings, extend={"run": short_run, "schedule": "restart"})
    child = start_child(job, ("trainer", "_optimiser_step", 1, signal.SIGTERM))
    child.communicate(timeout=600)
    other = tmp_path / "other"
    train(make_job(many_store, output=other, **SETTINGS | {"steps": 3, "seed": 5}))
    refused(make_job, many_store, "as an extension of another run than train.extend.run", **settings,
            extend={"run": other, "schedule": "restart"})  # fmt: skip


def test_an_ended_cosine_is_warned_about(
    short_run: Path, many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(extension, "SMALL_FACTOR", 0.6)  # the last of three steps has half of the peak
    assert learning_rate_factor(2, steps=3, warmup_ratio=0.03) == pytest.approx(0.5)
    train(make_job(many_store, steps=4, extend={"run": short_run, "schedule": "constant"}, **SETTINGS))
    assert "because the cosine of the earlier run has ended; set train.extend.learning_rate" in caplog.text


@pytest.mark.parametrize(
    ("extend", "message"),
    [
        ({"run": "old"}, "schedule is missing: the cosine of the earlier run has ended.*restart .*linear .*constant"),
        ({"schedule": "linear"}, "run"),
        ({"run": "old", "schedule": "cosine"}, "restart"),
        ({"run": "old", "schedule": "linear", "learning_rate": 0.0}, "learning_rate"),
        ({"run": "out", "schedule": "linear"}, "output out is extend.run out; choose another output"),
        ({"run": "out/old", "schedule": "linear"}, "output out contains extend.run out/old"),
    ],
)
def test_the_section_is_checked(extend: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(output=Path("out"), steps=4, **{"extend": extend})


def test_rates_of_groups_keep_their_ratio() -> None:
    """`extend.learning_rate` scales every group: the factor is its share of the peak."""
    settings = {"steps": 10, "warmup_ratio": 0.0, "learning_rate": 2e-5, "extend.step": 4, "extend.last_rate": 1e-9}
    settings |= {"extend.schedule": "linear", "extend.learning_rate": 1e-5}
    assert math.isclose(extension.schedule_of(settings)(4), 0.5)
    assert math.isclose(extension.schedule_of(settings | {"extend.learning_rate": None})(4), 5e-5)
    assert extension.schedule_of(settings | {"extend.schedule": "restart", "extend.learning_rate": None})(4) == 1.0


def test_an_extension_has_a_validation_of_its_own(
    short_run: Path, many_store: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    """Its first state is validated, and by default a tenth of the added steps lies between validations."""
    extend = {"run": short_run, "schedule": "restart"}
    validation = {"store": many_store, "max_samples": 2, "patience": 5}
    train(make_job(many_store, output=tmp_path / "new", steps=5, **SETTINGS, extend=extend, validation=validation))
    lines = [json.loads(line) for line in (tmp_path / "new" / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 5]
    assert lines[0]["best_step"] is None

    # the extended run need not be validated, and a coarser interval is counted from its own length
    extend = {"run": tmp_path / "new", "schedule": "restart"}
    train(make_job(many_store, output=tmp_path / "plain", steps=6, **SETTINGS, extend=extend))
    with pytest.raises(TrainError, match=r"validation\.share was None, is 0\.3"):
        job = make_job(
            many_store, output=tmp_path / "held", steps=6, **SETTINGS, extend=extend, validation={"share": 0.3}
        )
        train(job)


def test_the_extended_run_may_be_validated_meanwhile(
    short_run: Path, many_store: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    """A state that a stop left without its validation gets it later, in the same checkpoint; another run is refused."""
    old = shutil.copytree(short_run, tmp_path / "old")
    extend = {"run": old, "schedule": "restart"}
    job = make_job(many_store, output=tmp_path / "new", steps=4, **SETTINGS, extend=extend)
    train(job)
    state = old / "checkpoints" / "step-00000003" / "state.json"
    document = unseal(state)
    state.write_bytes(seal({**document, "validation": {"best_step": 3}}))
    assert train(job).already_finished
    state.write_bytes(seal({**document, "samples_seen": 5}))
    with pytest.raises(TrainError, match="was started as an extension of another run"):
        train(job)
    state.write_bytes(b"damaged")
    assert train(job).already_finished
