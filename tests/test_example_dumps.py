"""The dumps in examples/: what Kubernetes, the shell, Ray and alignkd say to them without running a teacher."""

import copy
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from alignkd.pipeline.cli import main
from alignkd.pipeline.config.recipes import load_stage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # parts of Ray are written for an older pydantic
    from ray.scripts.scripts import cli as ray

EXAMPLES = Path(__file__).parents[1] / "examples"
RAY_JOB = EXAMPLES / "kuberay-rayjob.yaml"
RECORD = '#!/bin/bash\necho "$@" >> "$RECORDS/${0##*/}"\n'
# `ray start` and `alignkd` go on until they are told to end
WAITING = "while true; do sleep 0.05; done\n"
STUBS = {
    "scontrol": RECORD + '[[ $1 != show ]] || printf "machine-1\\nmachine-2\\n"\n',
    "srun": RECORD + 'while [[ $1 == --* ]]; do shift 2; done\nexec "$@"\n',
    "ray": RECORD + f'[[ $1 != start ]] || {WAITING}',
    "alignkd": "#!/bin/bash\ntrap 'echo INT >> \"$RECORDS/alignkd\"; exit 130' INT\n"
    + RECORD.removeprefix("#!/bin/bash\n")
    + '[[ ! -e $RECORDS/ray ]] || until (($(grep -c ^start "$RECORDS/ray") == 2)); do sleep 0.05; done\n'
    + f'[[ -z ${{WAITS-}} ]] || {WAITING}',
}  # fmt: skip
Start = Callable[..., "subprocess.Popen[bytes]"]


def given(group: click.Group, words: list[str]) -> dict[str, Any]:
    """The options of a command line, by the parser of the program; a usage error if it has no such options."""
    command = group.get_command(click.Context(group), words[0])
    assert command is not None, words
    return command.make_context(words[0], words[1:]).params


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(RAY_JOB.read_text()))


def pod_templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [copy.deepcopy(group["template"]) for group in groups]


def test_kubernetes_accepts_what_the_job_is_made_of(documents: list[dict[str, Any]]) -> None:
    """KubeRay's own keys are in no schema that Kubernetes publishes; the pods inside are."""
    config, job = documents
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, **template}
        for number, template in enumerate(pod_templates(job))
    ]
    for document in (config, *pods):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    pods[1]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pods[1], kubernetes_validate.latest_version(), strict=True)
    for pod in pods:
        mounted = {mount["name"] for part in pod["spec"]["containers"] for mount in part["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_the_job_runs_a_command_and_a_configuration_that_alignkd_accepts(
    documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    config, job = documents
    name, *words = shlex.split(job["spec"]["entrypoint"])
    options = given(main, words)
    assert name == "alignkd" and options["on_ray"] and options["config"] == Path("/config/run.yaml")
    container = pod_templates(job)[1]["spec"]["containers"][0]["resources"]
    # a machine has room for one worker
    assert options["gpus_per_worker"] == float(container["limits"]["nvidia.com/gpu"])
    assert options["cpus_per_worker"] == float(container["requests"]["cpu"])
    (tmp_path / "run.yaml").write_text(config["data"]["run.yaml"])
    assert str(load_stage(tmp_path / "run.yaml", "dump", None).store.path).startswith("s3://")
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        words = [f"--{option}={value}" for option, value in group["rayStartParams"].items()]
        given(ray, ["start", "--head", *words])


@pytest.mark.parametrize("script", ["slurm-dump.sh", "slurm-ray.sh"])
def test_scripts_have_no_mistakes_of_the_shell(script: str) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, EXAMPLES / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """start(script, **environment) runs an example with programs that record their arguments."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "records").mkdir()
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "machine-[1-2]", "SLURM_NNODES": "2"}
    variables = {**os.environ, **job, "PATH": f"{tmp_path}:/usr/bin:/bin", "RECORDS": str(tmp_path / "records")}
    return lambda script, **environment: subprocess.Popen(
        ["bash", EXAMPLES / script], env={**variables, **environment}, cwd=tmp_path
    )


def recorded(folder: Path, name: str) -> list[list[str]]:
    """The arguments of each call of a program."""
    return [line.split() for line in (folder / "records" / name).read_text().splitlines()]


def test_the_array_runs_a_worker_that_numbers_itself(start: Start, tmp_path: Path) -> None:
    assert start("slurm-dump.sh").wait(60) == 0
    (words,) = recorded(tmp_path, "alignkd")
    options = given(main, words)
    assert words[0] == "dump" and options["config"] == Path("run.yaml") and options["worker"] is None


def test_slurm_starts_a_raylet_on_every_machine_and_one_command(start: Start, tmp_path: Path) -> None:
    assert start("slurm-ray.sh").wait(60) == 0
    calls = {words[0] + words[1]: words for words in recorded(tmp_path, "ray")}
    head = given(ray, calls["start--head"])
    assert (head["head"], head["port"], head["num_gpus"], head["block"]) == (True, 23456, 4, True)
    joined = given(ray, calls["start--address"])
    checked = given(ray, calls["health-check--address"])
    (words,) = recorded(tmp_path, "alignkd")
    command = given(main, words)
    assert command["on_ray"] and command["gpus_per_worker"] == 1.0
    assert joined["address"] == checked["address"] == command["address"] == "machine-1:23456"
    steps = [words[:6] for words in recorded(tmp_path, "srun")]  # they run side by side
    for where in ("--nodelist", "--exclude"):
        assert ["--nodes", "1", "--ntasks", "1", where, "machine-1"] in steps
    assert len(steps) == 2
    assert recorded(tmp_path, "scontrol") == [["show", "hostnames", "machine-[1-2]"]]  # and no requeue


def test_slurm_finishes_the_shards_before_the_time_limit_and_goes_on_later(start: Start, tmp_path: Path) -> None:
    job = start("slurm-ray.sh", WAITS="yes")
    while not (tmp_path / "records" / "alignkd").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 130
    assert recorded(tmp_path, "alignkd")[-1] == ["INT"]
    assert recorded(tmp_path, "scontrol")[-1] == ["requeue", "123456"]
