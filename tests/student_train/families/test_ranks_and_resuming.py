"""Two ranks, one of which may have text only, and runs that are interrupted: the same student in the end."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chosen_families import chosen
from processes_of_two import ended, run_two
from safetensors.torch import load_file

from alignkd.student_train.job import TrainJob
from alignkd.student_train.trainer import train

ReadMetrics = Callable[[Path], list[dict[str, Any]]]


# features of several tower layers; parameters of the projector that only some images reach
TWO_RANKS = chosen(["qwen3_vl", "llava_next", "gemma3", "smolvlm"], lambda name: name in ("qwen3_vl", "llava_next"))


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_are_one(
    name: str,
    family_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """With one sample per pass, one rank often has an image and the other text alone; gradients arrive alike."""
    settings: dict[str, Any] = {"steps": 3, "global_batch": 4}
    alone = family_job(name, output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = family_job(name, output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, job)
    found, expected = (read_metrics(one.train.output) for one in (job, alone))
    assert any(line["samples_text_only"] for line in expected)
    for line, reference in zip(found, expected, strict=True):
        for figure, value in reference.items():
            assert line[figure] == (value if value is None else pytest.approx(value, rel=5e-5)), figure
    weights, reference = (load_file(one.train.output / "student" / "model.safetensors") for one in (job, alone))
    assert weights.keys() == reference.keys()
    for key, value in reference.items():
        # AdamW turns the sign of a gradient near 0 into a whole step of the learning rate
        assert (weights[key] - value).abs().max() < 5e-3, key
        assert (weights[key] - value).norm() <= 1e-2 * value.norm() + 1e-6, key


def test_a_run_that_is_killed_and_resumed_is_the_unbroken_one(
    family_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """kill -9 in a step, in a checkpoint and in the export, with data workers; bit for bit in the end."""
    settings: dict[str, Any] = {"steps": 4, "micro_batch": 2, "global_batch": 4, "checkpoint_every": 2}
    settings |= {"gradient_checkpointing": True}
    unbroken = family_job("qwen3_vl", output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = family_job("qwen3_vl", output=tmp_path / "killed", data_workers=2, **settings)
    blows = [
        ("checkpoint", "save_tensors", 2, signal.SIGKILL),
        ("trainer", "_optimiser_step", 4, signal.SIGKILL),
        ("export", "save_tensors", 1, signal.SIGKILL),
    ]
    for blow in blows:
        ended(start_child(job, blow), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    for file in ("student/model.safetensors", "adapters.safetensors"):
        assert (job.train.output / file).read_bytes() == (unbroken.train.output / file).read_bytes()
    again = train(job)
    assert again.already_finished
