"""`train(job)` on the pretend device by both engines and with each optimiser, whole and resumed."""

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from device_rules import MixedDevicesError
from golden_jobs import GoldenJobs, train_on_device
from known_waits import (
    ADAM_STEP,
    AROUND,
    CHECKPOINT,
    CHECKPOINT_OF_DEEPSPEED,
    LEVELS,
    MICRO_BATCH,
    STEP,
    STEP_OF_DEEPSPEED,
    Known,
    unknown,
    unmet,
)
from pretend_device import LOG

from alignkd.student_train import trainer
from alignkd.student_train.engine import build
from alignkd.student_train.engine.optimizers.adamw import FusedAdamW
from alignkd.student_train.output import TIMINGS
from alignkd.student_train.trainer import train

STEPS = 2
# Largest relative difference of a figure to that of moments in float32.
EIGHT_BITS = 1e-3


class Stopped(Exception):  # noqa: N818 - the end of a run, not an error of it
    pass


@pytest.fixture(autouse=True)
def _pretend_accelerator() -> None:
    from pretend_accelerator import use_pretend_accelerator

    use_pretend_accelerator()


@pytest.fixture(scope="module")
def on_cpu(jobs: GoldenJobs) -> list[dict[str, Any]]:
    """The figures of every step of an unbroken run on the CPU; its validations do not change them."""
    job = jobs.train_job("compact", "on-cpu", validation=validation(jobs))
    train(job)
    return figures(job.train.output)


def validation(jobs: GoldenJobs) -> dict[str, Any]:
    """Settings of validation on the samples of the training."""
    return {"store": str(jobs.store("compact")), "every": 1, "at_start": False}


def assert_waits_are(known: list[Known]) -> None:
    """No other waits in a run than these and those of micro-batches, and every one of them."""
    waits = Counter({wait: count for wait, count in LOG.waits.items() if not any(k.is_of(wait) for k in MICRO_BATCH)})
    assert unknown(waits, known, STEPS) == []
    assert unmet(waits, known) == []


def test_a_run_is_that_of_the_cpu_and_waits_where_it_is_known(
    jobs: GoldenJobs, on_cpu: list[dict[str, Any]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.train_job("compact", "on-device")
    train_on_device(job, monkeypatch)
    assert_close(figures(job.train.output), on_cpu)
    assert_waits_are([*STEP, *AROUND, *CHECKPOINT, ADAM_STEP])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_bfloat16_is_that_of_the_cpu(
    optimizer: str, jobs: GoldenJobs, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in float32 and master weights beside the weights; bounds are those of bfloat16."""
    if optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    settings = {"dtype": "bfloat16", "optimizer": optimizer}
    here = jobs.train_job("compact", f"{optimizer}-bfloat16-on-cpu", **settings)
    train(here)
    there = jobs.train_job("compact", f"{optimizer}-bfloat16-on-device", **settings)
    train_on_device(there, monkeypatch)
    assert_close(figures(there.train.output), figures(here.train.output), 2e-2)
    waits = {wait: count for wait, count in LOG.waits.items() if not any(known.is_of(wait) for known in MICRO_BATCH)}
    assert unknown(waits, [*STEP, *AROUND, *CHECKPOINT, ADAM_STEP, LEVELS], STEPS) == []


def test_moments_in_8_bits_wait_no_more(
    jobs: GoldenJobs, on_cpu: list[dict[str, Any]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    job = jobs.train_job("compact", "eight-bits", optimizer="adamw_8bit")
    train_on_device(job, monkeypatch)
    assert_close(figures(job.train.output), on_cpu, EIGHT_BITS)
    assert_waits_are([*STEP, *AROUND, *CHECKPOINT, LEVELS])


def test_deepspeed_is_that_of_the_cpu_and_waits_where_it_is_known(
    jobs: GoldenJobs, on_cpu: list[dict[str, Any]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on several devices."""
    monkeypatch.setattr(build, "uses_deepspeed", lambda config, world_size: True)
    job = jobs.train_job("compact", "deepspeed-on-device")
    train_on_device(job, monkeypatch)
    assert_close(figures(job.train.output), on_cpu)
    assert_waits_are([*STEP_OF_DEEPSPEED, *AROUND, *CHECKPOINT_OF_DEEPSPEED, ADAM_STEP])


def test_losses_by_layer_wait_once_in_a_step(
    jobs: GoldenJobs, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_on_device(jobs.train_job("sampled_layers", "layers-on-device"), monkeypatch)
    for line in figures(jobs.folder / "layers-on-device"):
        assert line["attention"] == pytest.approx((line["attention_0"] + line["attention_1"]) / 2, rel=1e-6)
    waits = {wait: count for wait, count in LOG.waits.items() if wait.place.file.endswith("layer_sums.py")}
    assert [(wait.reason, count) for wait, count in waits.items()] == [("tolist", STEPS)]


def test_pairs_of_answers_wait_for_their_means_and_figures(
    jobs: GoldenJobs, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kto_pair` in two micro-batches: two rounds of numbers of the pass before the step, and the figures after it."""
    here = jobs.train_job("pairs", "pairs-on-cpu")
    train(here)
    job = jobs.train_job("pairs", "pairs-on-device")
    train_on_device(job, monkeypatch)
    assert_close(figures(job.train.output), figures(here.train.output))
    waits = [wait for wait in LOG.waits if wait.place.file.endswith("preference/settings.py")]
    assert {(wait.place.function, wait.reason) for wait in waits} == {("statistics_of", "tolist"), ("totals", "tolist")}
    assert sum(LOG.waits[wait] for wait in waits) == 3 * STEPS
    assert not [wait for wait in LOG.waits if wait.place.file.endswith("preference/term.py")]


def test_the_figures_of_taid_take_no_wait_of_their_own(
    jobs: GoldenJobs, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"logit_divergence": "taid", "taid": {"form": "bucketed"}}
    here = jobs.train_job("compact", "taid-on-cpu", losses=losses)
    train(here)
    LOG.clear()
    train_on_device(jobs.train_job("compact", "taid-on-device", losses=losses), monkeypatch)
    found = figures(jobs.folder / "taid-on-device")
    assert_close(found, figures(here.train.output))
    assert [line["taid_t"] for line in found] == [0.4, 0.4] and all(line["taid_cross_entropy"] > 0 for line in found)
    assert_waits_are([*STEP, *AROUND, *CHECKPOINT, ADAM_STEP])


def test_a_resumed_run_goes_on(
    jobs: GoldenJobs, on_cpu: list[dict[str, Any]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.train_job("compact", "resumed")
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "_check_not_diverged", stop_at(2))
        with pytest.raises(Stopped):
            train_on_device(job, patched)
    train_on_device(job, monkeypatch)
    assert_close(figures(job.train.output), on_cpu)


def test_offloaded_state(
    jobs: GoldenJobs, on_cpu: list[dict[str, Any]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.train_job("compact", "offloaded", optimizer="adamw_offload")
    train_on_device(job, monkeypatch)
    assert_close(figures(job.train.output), on_cpu)


def test_a_step_of_adamw_on_the_host_is_found(
    jobs: GoldenJobs, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it once was: fused AdamW requires its step on the device of the parameters, as torch checks on CUDA alone."""
    real = FusedAdamW.create_state

    def faulty(optimizer: FusedAdamW, *arguments: Any) -> None:
        real(optimizer, *arguments)
        for state in optimizer.state.values():
            state["step"] = torch.tensor(0.0)

    monkeypatch.setattr(FusedAdamW, "create_state", faulty)
    with pytest.raises(
        MixedDevicesError, match=r"_fused_adamw_.*\(\)\], at student_train/engine/optimizers/moments.py:\d+ update"
    ):
        train_on_device(jobs.train_job("compact", "faulty"), monkeypatch)


def stop_at(step: int) -> Any:
    """In place of `_check_not_diverged`: ends the run in this step, after its update."""

    def check(state: Any, *others: Any) -> None:
        if state.step == step:
            raise Stopped

    return check


def figures(output: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """What a file keeps of each step, without times."""
    lines = [json.loads(line) for line in (output / file).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]], bound: float = 2e-5) -> None:
    """The same steps, losses within rounding."""
    assert [line["step"] for line in found] == [line["step"] for line in expected] == list(range(1, STEPS + 1))
    for there, here in zip(found, expected, strict=True):
        assert there == pytest.approx(here, rel=bound)


def test_validations_are_those_of_the_cpu(
    jobs: GoldenJobs, on_cpu: list[dict[str, Any]], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.train_job("compact", "validated-on-device", validation=validation(jobs))
    train_on_device(job, monkeypatch)
    found, expected = (figures(output, "validation.jsonl") for output in (job.train.output, jobs.folder / "on-cpu"))
    assert [line["step"] for line in expected] == [1, 2]
    for line, reference in zip(found, expected, strict=True):
        assert line == pytest.approx(reference, rel=2e-5)
    assert_close(figures(job.train.output), on_cpu)
