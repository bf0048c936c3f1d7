"""The scripts in examples/: no shell mistakes, launchers and alignkd accept their options, SLURM's signal is obeyed."""

import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from alignkd.pipeline.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = ("train-torchrun.sh", "train-deepspeed.sh", "slurm-train.sh")
MODULE = "alignkd.pipeline.cli"
# Each records the words it is called with, one per line; `torchrun` then waits for SIGTERM if it is told to.
RECORD = '#!/bin/bash\nprintf "%s\\n" "$0" "$@" >> "$RECORDS/${0##*/}"\n'
STUBS = {
    "deepspeed": RECORD,
    "scontrol": RECORD + '[[ $1 != show ]] || printf "machine-1\\nmachine-2\\n"\n',
    "srun": '#!/bin/bash\n[[ $1 == --* ]] && shift\nexec "$@"\n',
    "torchrun": '#!/bin/bash\ntrap \'echo TERM >> "$RECORDS/torchrun"; exit "$CODE"\' TERM\n'
    + RECORD
    + '[[ -n ${WAITS-} ]] || exit "${CODE:-0}"\nwhile true; do sleep 0.05; done\n',
}
JOB = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "machine-[1-2]", "SLURM_NNODES": "2"}
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """start(script, arguments, **environment) runs an example with launchers that record how they are called."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {**os.environ, **JOB, "PATH": f"{tmp_path}:/usr/bin:/bin", "RECORDS": str(tmp_path / "records")}
    (tmp_path / "records").mkdir()

    def run(script: str, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["bash", EXAMPLES / script, *arguments], env={**variables, **environment}, cwd=tmp_path)

    return run


def recorded(folder: Path, name: str) -> list[str]:
    """The words of a call, without the name of the command."""
    return (folder / "records" / name).read_text().splitlines()[1:]


def parsed_by_torchrun(words: list[str]) -> Namespace:
    from torch.distributed.run import get_args_parser

    found: Namespace = get_args_parser().parse_args(words)
    return found


def check_trains(words: list[str]) -> None:
    """The words after the module are a command of alignkd, with options that it has."""
    command = main.get_command(click.Context(main), words[0])
    assert command is not None and words[0] == "train"
    assert command.make_context("train", words[1:], resilient_parsing=False).params["config"] == Path("run.yaml")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_have_no_mistakes_of_the_shell(script: str) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, EXAMPLES / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_torchrun_accepts_its_example(start: Start, tmp_path: Path) -> None:
    assert start("train-torchrun.sh", "machine-1", RESTARTS="3").wait(60) == 0
    found = parsed_by_torchrun(recorded(tmp_path, "torchrun"))
    assert (found.nnodes, found.nproc_per_node, found.max_restarts) == ("2", "4", 3)
    assert (found.rdzv_backend, found.rdzv_endpoint, found.shutdown_timeout) == ("c10d", "machine-1:29500", 240)
    assert found.module and found.training_script == MODULE
    check_trains(found.training_script_args)


def test_torchrun_needs_the_machine_to_meet_at(start: Start, tmp_path: Path) -> None:
    assert start("train-torchrun.sh").wait(60) == 1
    assert not (tmp_path / "records" / "torchrun").exists()


@pytest.mark.parametrize("by_hand", [(), ("--no_ssh", "--node_rank", "1", "--master_addr", "machine-1")])
def test_deepspeed_accepts_its_example(by_hand: tuple[str, ...], start: Start, tmp_path: Path) -> None:
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    assert start("train-deepspeed.sh", *by_hand).wait(60) == 0
    found = parse_args(recorded(tmp_path, "deepspeed"))
    assert found.module and found.no_local_rank and found.user_script == MODULE
    assert (found.no_ssh, found.node_rank) == ((True, 1) if by_hand else (False, -1))
    check_trains(found.user_args)
    assert fetch_hostfile(str(EXAMPLES / found.hostfile)) == {"machine-1": 4, "machine-2": 4}


def test_slurm_starts_a_launcher_on_every_machine(start: Start, tmp_path: Path) -> None:
    assert start("slurm-train.sh").wait(60) == 0
    found = parsed_by_torchrun(recorded(tmp_path, "torchrun"))
    assert (found.nnodes, found.nproc_per_node, found.rdzv_id) == ("2", "4", "123456")
    assert found.rdzv_endpoint == "machine-1:23456"  # another job has another port
    check_trains(found.training_script_args)
    assert recorded(tmp_path, "scontrol") == ["show", "hostnames", "machine-[1-2]"]  # and no requeue


def test_slurm_requeues_a_job_that_it_has_stopped(start: Start, tmp_path: Path) -> None:
    """SIGTERM reaches the script alone (`--signal=B:TERM`), which passes it on and waits for the checkpoint."""
    job = start("slurm-train.sh", WAITS="yes", CODE="1")
    records = tmp_path / "records" / "torchrun"
    while not records.exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 1
    assert records.read_text().splitlines()[-1] == "TERM"
    assert recorded(tmp_path, "scontrol")[-2:] == ["requeue", "123456"]


@pytest.mark.parametrize(("code", "stops"), [("1", False), ("0", True)])
def test_slurm_does_not_requeue_an_error_or_the_end(code: str, stops: bool, start: Start, tmp_path: Path) -> None:
    job = start("slurm-train.sh", CODE=code, **({"WAITS": "yes"} if stops else {}))
    if stops:
        while not (tmp_path / "records" / "torchrun").exists():
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
    assert job.wait(60) == int(code)
    assert "requeue" not in recorded(tmp_path, "scontrol")


def test_slurm_gives_a_checkpoint_the_time_that_torchrun_waits() -> None:
    """The signal comes before the limit, and torchrun ends its processes before SLURM does."""
    text = (EXAMPLES / "slurm-train.sh").read_text()
    assert "#SBATCH --signal=B:TERM@300" in text and "--shutdown-timeout 240" in text and "#SBATCH --requeue" in text
