"""Runs with TAID: t follows the gathered losses; resumed, on several ranks and in an extension it is the same."""

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes_of_two import ended, run_several

from alignkd.storage.schema.sealed_json import unseal
from alignkd.student_train import trainer
from alignkd.student_train.checkpoints.checkpoint import STATE
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.logits.taid_schedule import TaidConfig, TaidState
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
# a rate at which the adaptive part moves t in a few steps
FAST: dict[str, Any] = {"start": 0.2, "end": 0.9, "rate": 0.5, "momentum": 0.5}
EXPORTED = ("student/model.safetensors", "adapters.safetensors")


def losses(*, form: str = "full", **settings: Any) -> dict[str, Any]:
    return {
        "attention": 0.0,
        "vision_top": 0.0,
        "vision_all": 0.0,
        "logit_divergence": "taid",
        "taid": {**FAST, "form": form, **settings},
    }


def settings_of(steps: int, **more: Any) -> dict[str, Any]:
    return {"steps": steps, "global_batch": 4, "checkpoint_every": 1, "losses": losses(), **more}


def expected_shares(lines: list[dict[str, Any]], config: TaidConfig, floor_steps: int) -> list[float]:
    """t of each step from the cross-entropies that the metrics name."""
    state, found = TaidState.at_start(config), []
    for line in lines:
        found.append(state.t)
        state = state.after(config, line["taid_cross_entropy"], progress=(line["step"] - 1) / floor_steps)
    return found


@pytest.mark.parametrize("form", ["full", "bucketed"])
def test_the_share_of_the_teacher_rises_with_the_recorded_losses(
    form: str,
    many_store: Path,
    truncated_store: Path,
    make_job: MakeJob,
    read_metrics: ReadMetrics,
    tensorboard_equals_metrics: Callable[[Path], None],
) -> None:
    """Every micro-batch of a step uses the same t: the recorded loss is that of another division, too."""
    store = many_store if form == "full" else truncated_store
    job = make_job(store, micro_batch=1, **settings_of(6) | {"losses": losses(form=form)})
    train(job)
    lines = read_metrics(job.train.output)
    shares = [line["taid_t"] for line in lines]
    assert job.train.losses.taid is not None
    assert shares == expected_shares(lines, job.train.losses.taid, 6)
    assert shares[0] == 0.2 and shares == sorted(shares) and len({*shares}) == 5 and shares[-1] > 0.6
    # the first update has no loss before it, so the second step has the floor's beginning
    assert shares[1] == shares[0] < shares[2]
    floor = [0.2 + 0.7 * max(step - 1, 0) / 6 for step in range(6)]
    assert all(share > least for share, least in zip(shares[2:], floor[2:], strict=True))
    for line in lines:
        assert 0 < line["logit"] < line["taid_cross_entropy"]  # by the entropy of the intermediate teacher
        assert line["loss"] == pytest.approx(line["supervised"] + line["logit"], rel=1e-6)
    tensorboard_equals_metrics(job.train.output)

    other = make_job(store, output=job.train.output.with_name("other"), micro_batch=4, **settings_of(6))
    other = TrainJob(
        **vars(other) | {"train": other.train.model_copy(update={"losses": job.train.losses, "report_to": "none"})}
    )
    train(other)
    for line, same in zip(lines, read_metrics(other.train.output), strict=True):
        for name in ("taid_t", "taid_cross_entropy", "logit"):
            assert same[name] == pytest.approx(line[name], rel=2e-5), (line["step"], name)


def test_killed_and_resumed_in_the_middle_it_is_the_unbroken_run(
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    unbroken = make_job(many_store, output=tmp_path / "unbroken", **settings_of(5))
    train(unbroken)
    job = make_job(many_store, output=tmp_path / "killed", **settings_of(5))
    ended(start_child(job, ("trainer", "_optimiser_step", 4, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    lines = read_metrics(job.train.output)
    assert lines == read_metrics(unbroken.train.output) and lines[-1]["taid_t"] > lines[2]["taid_t"]
    for name in EXPORTED:
        assert (job.train.output / name).read_bytes() == (unbroken.train.output / name).read_bytes()
    states = [
        unseal(tmp_path / run / "checkpoints" / "step-00000005" / STATE)["taid"] for run in ("unbroken", "killed")
    ]
    assert states[0] == states[1] and states[0].keys() == {"t", "loss", "momentum"}


@pytest.mark.parametrize("number", [2, 4])
def test_several_ranks_equal_one(
    number: int, truncated_store: Path, make_job: MakeJob, start_child: Any, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    settings = settings_of(4) | {"losses": losses(form="bucketed")}
    alone = make_job(truncated_store, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = make_job(truncated_store, output=tmp_path / "several", micro_batch=1, **settings)
    run_several(start_child, job, number)
    found, expected = (read_metrics(one.train.output) for one in (job, alone))
    # t itself is a function of the recorded figures alone: were it another on some rank, so would be the losses
    assert job.train.losses.taid is not None
    assert [line["taid_t"] for line in found] == expected_shares(found, job.train.losses.taid, 4)
    for line, same in zip(found, expected, strict=True):
        for name, value in same.items():
            assert line[name] == (value if value is None else pytest.approx(value, rel=2e-5)), name


def test_an_extension_goes_on_from_the_share_and_the_floor_of_the_first_run(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """A run of four steps that stopped after two, extended to six, resumed and extended again.

    The rate is 0, so t is the floor: of four steps, whatever the length of the extension; and it never falls.
    """
    settings = settings_of(4) | {"losses": losses(rate=0.0)}
    train(make_job(many_store, output=tmp_path / "whole", keep_checkpoints=4, **settings))
    whole = [line["taid_t"] for line in read_metrics(tmp_path / "whole")]
    assert whole == pytest.approx([0.2, 0.2, 0.375, 0.55])
    stopped = tmp_path / "stopped"
    shutil.copytree(tmp_path / "whole", stopped)
    (stopped / "finished.json").unlink()
    for step in (3, 4):
        shutil.rmtree(stopped / "checkpoints" / f"step-{step:08d}")

    extend = {"run": stopped, "schedule": "constant"}
    job = make_job(many_store, output=tmp_path / "longer", extend=extend, **settings | {"steps": 6})
    train(job)
    shutil.rmtree(tmp_path / "longer" / "checkpoints" / "step-00000006")
    (tmp_path / "longer" / "finished.json").unlink()
    train(job)
    extend = {"run": tmp_path / "longer", "schedule": "constant"}
    train(make_job(many_store, output=tmp_path / "longest", extend=extend, **settings | {"steps": 8}))
    lines = [*read_metrics(tmp_path / "longer"), *read_metrics(tmp_path / "longest")]
    assert [line["step"] for line in lines] == [3, 4, 5, 6, 7, 8]
    assert [line["taid_t"] for line in lines] == pytest.approx([0.375, 0.55, 0.725, 0.9, 0.9, 0.9])


def test_validation_is_the_divergence_from_the_teacher_itself(
    many_store: Path, make_job: MakeJob, tmp_path: Path
) -> None:
    """The same figures as those of a run with forward KL, while the student is the same."""
    found = []
    for name, chosen in (("taid", losses()), ("kl", losses() | {"logit_divergence": "forward_kl", "taid": None})):
        validation = {"store": str(many_store), "every": 1, "export": "last"}
        settings = settings_of(2) | {"losses": chosen}
        job = make_job(many_store, output=tmp_path / name, validation=validation, **settings)
        train(job)
        lines = [json.loads(line) for line in (job.train.output / "validation.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [0, 1, 2]
        found.append(lines)
    for figure in ("loss", "supervised", "logit"):
        assert found[0][0][figure] == found[1][0][figure]
    first = json.loads((tmp_path / "taid" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["logit"] < found[0][0]["logit"]  # the intermediate teacher is nearer


def test_a_step_without_a_finite_loss_leaves_no_trace_in_the_state(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = StepTally.gather, [0]

    def gather(self: StepTally, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        calls[0] += 1
        if calls[0] == 3:
            self.figures = dict.fromkeys(self.figures, math.nan)

    monkeypatch.setattr(StepTally, "gather", gather)
    job = make_job(many_store, **settings_of(6))
    train(job)
    lines = read_metrics(job.train.output)
    assert lines[2]["taid_cross_entropy"] is None
    assert job.train.losses.taid is not None
    shares = [line["taid_t"] for line in lines]
    assert shares == expected_shares(lines, job.train.losses.taid, 6)
    assert shares == sorted(shares) and all(math.isfinite(share) for share in shares)


def test_settings_of_taid_are_those_of_the_run(many_store: Path, make_job: MakeJob) -> None:
    """Another rate is another run; the defaults may be written or left out."""
    chosen = {**losses(), "taid": None}

    def again(**changed: Any) -> bool:
        return train(make_job(many_store, **settings_of(1) | {"losses": chosen | changed})).already_finished

    assert not again()
    assert again(taid={"start": 0.4})
    with pytest.raises(TrainError, match=r"losses\.taid was .*'rate': 0\.0005.*, is .*'rate': 0\.001"):
        again(taid={"rate": 1e-3})
    with pytest.raises(TrainError, match=r"losses\.logit_divergence was taid, is forward_kl"):
        again(logit_divergence="forward_kl")


def test_a_truncated_store_takes_the_bucketed_form_only(
    truncated_store: Path, many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(trainer, "build_student", none)
    with pytest.raises(ValueError, match=r"losses\.taid\.form 'full' mixes all tokens; set it to 'bucketed'"):
        train(make_job(truncated_store, **settings_of(1)))
    with pytest.raises(ValueError, match=r"losses\.taid\.form 'bucketed' is for kept tokens; set it to 'full'"):
        train(make_job(many_store, **settings_of(1) | {"losses": losses(form="bucketed")}))
