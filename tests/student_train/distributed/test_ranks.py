"""The device of a training process: DeepSpeed and torch must agree on it."""

import pytest
import torch

from alignkd.student_train.distributed import ranks
from alignkd.student_train.distributed.ranks import accelerator, start_ranks, training_device
from alignkd.student_train.errors import TrainError
from alignkd.vlm.errors import InputError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs, started by no launcher, with nothing said about accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ranks, "REQUESTED_ACCELERATOR", None)
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "CROSS_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_gpu_is_taken_where_there_is_one(machine: pytest.MonkeyPatch) -> None:
    assert training_device() == torch.device("cuda", 0)
    machine.setenv("LOCAL_RANK", "1")
    assert training_device() == torch.device("cuda", 1)


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "CROSS_SIZE"])
def test_more_processes_of_a_launcher_than_gpus(machine: pytest.MonkeyPatch, launcher: str) -> None:
    machine.setenv(launcher, "1")
    machine.setattr(torch.cuda, "device_count", lambda: 1)
    machine.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="LOCAL_RANK is 1, but 1 GPUs are visible"):
        training_device()
    machine.delenv(launcher)
    assert training_device() == torch.device("cuda", 0)  # a scheduler that shows each task one GPU


def test_ds_accelerator_cpu_means_the_cpu_for_everything(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(ranks, "REQUESTED_ACCELERATOR", "cpu")
    assert start_ranks().device == torch.device("cpu")
    assert torch.distributed.get_backend() == "gloo"


def test_another_accelerator_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(ranks, "REQUESTED_ACCELERATOR", "xpu")
    with pytest.raises(TrainError, match=r"DS_ACCELERATOR is 'xpu', training runs on 'cuda' or 'cpu'"):
        accelerator()


def test_cuda_that_is_not_there_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(ranks, "REQUESTED_ACCELERATOR", "cuda")
    assert accelerator() == "cuda"
    machine.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainError, match="DS_ACCELERATOR is 'cuda', but torch cannot use CUDA here"):
        accelerator()
