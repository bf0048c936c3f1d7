"""Which device is taken, what is reported about it, and why a GPU is not used."""

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.hardware import device_report as report_module
from alignkd.vlm.hardware import devices
from alignkd.vlm.hardware.cuda_driver import NO_DEVICE, CudaDriver, unused_gpu
from alignkd.vlm.hardware.device_report import describe_device, device_report, host_memory
from alignkd.vlm.hardware.devices import check_dtype, keep_float32_exact, local_cuda_index

CUDA = torch.device("cuda", 0)


class Library:
    """What ctypes makes of libcuda, for a driver of a chosen version."""

    def __init__(self, version: int, init_code: int = 0) -> None:
        self.version, self.init_code = version, init_code

    def cuDriverGetVersion(self, pointer: Any) -> int:
        pointer._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.init_code


def card(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], *, bfloat16: bool = True) -> None:
    """torch.cuda describes a card that this machine lacks."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (15 * 2**30, 16 * 2**30))


def test_driver_version_is_read_from_the_library() -> None:
    assert CudaDriver.of_library(Library(12040)) == CudaDriver(version=(12, 4), init_code=0)
    assert CudaDriver.of_library(Library(13000, NO_DEVICE)).init_code == NO_DEVICE


def test_a_machine_without_the_library_has_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert CudaDriver.installed() is None


@pytest.mark.parametrize(
    ("version", "init_code", "built_for", "reason"),
    [
        (12080, 0, "13.0", r"built for CUDA 13.0, the NVIDIA driver runs CUDA 12.8 at most; update the driver, or"),
        (13000, 0, None, "is a CPU build; install a CUDA build of torch"),
        (13000, 803, "13.0", r"the NVIDIA driver \(CUDA 13.0\) does not start, cuInit returned 803; run nvidia-smi"),
        (12040, 0, "12.8", r"torch \(CUDA 12.8\) cannot use the GPU, though the NVIDIA driver \(CUDA 12.4\) starts"),
    ],
)
def test_why_a_gpu_is_not_used(version: int, init_code: int, built_for: str | None, reason: str) -> None:
    found = unused_gpu(CudaDriver.of_library(Library(version, init_code)), built_for=built_for)
    assert found is not None
    assert re.search(reason, found)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus_are_not_reported(visible: str) -> None:
    driver = CudaDriver(version=(12, 4), init_code=0)
    assert unused_gpu(driver, built_for="13.0") is not None
    assert unused_gpu(driver, built_for="13.0", visible_devices=visible) is None


def test_a_driver_without_a_gpu_is_not_reported() -> None:
    assert unused_gpu(CudaDriver(version=(12, 4), init_code=NO_DEVICE), built_for="13.0") is None
    assert unused_gpu(None, built_for="13.0") is None


def test_a_run_on_the_cpu_beside_an_unusable_gpu_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "unused_gpu_here", lambda: "the driver is too old")
    line, warnings = device_report(torch.device("cpu"), torch.float32, chosen=False)
    assert line.startswith("device cpu (") and warnings == ["running on the CPU: the driver is too old"]
    assert device_report(torch.device("cpu"), torch.float32, chosen=True)[1] == []


def test_the_line_names_card_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, "Tesla T4", (7, 5))
    assert describe_device(CUDA) == "cuda:0 (Tesla T4, 16.0 GiB, 15.0 GiB free)"


def test_host_memory_is_the_machines_or_the_containers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report_module, "_MEMORY_LIMITS", ())
    physical = host_memory()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(report_module, "_MEMORY_LIMITS", (limit,))
    for text, expected in (("max\n", physical), (f"{physical // 2}\n", physical // 2), (f"{physical * 2}\n", physical)):
        limit.write_text(text)
        assert host_memory() == expected
    limit.unlink()
    assert host_memory() == physical


def test_bfloat16_that_a_card_emulates_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, "Tesla T4", (7, 5))
    assert "cuda:0 (Tesla T4) has no bfloat16 units" in str(check_dtype(CUDA, torch.bfloat16))
    assert check_dtype(CUDA, torch.float16) is None
    card(monkeypatch, "NVIDIA GeForce RTX 3090", (8, 6))
    assert check_dtype(CUDA, torch.bfloat16) is None


def test_bfloat16_that_a_card_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, "Tesla K80", (3, 7), bfloat16=False)
    with pytest.raises(InputError, match=r"cuda:0 \(Tesla K80\) does not support it; set dtype to float16 or float32"):
        check_dtype(CUDA, torch.bfloat16)


@pytest.mark.parametrize(
    ("local_rank", "visible", "own_launcher", "index"),
    [(0, 1, True, 0), (3, 4, True, 3), (0, 4, False, 0), (3, 1, False, 0)],
)
def test_the_gpu_of_a_process(local_rank: int, visible: int, own_launcher: bool, index: int) -> None:
    assert local_cuda_index(local_rank, visible=visible, own_launcher=own_launcher) == index


@pytest.mark.parametrize(("local_rank", "visible", "own_launcher"), [(1, 1, True), (4, 4, True), (5, 2, False)])
def test_more_processes_than_gpus_are_refused(local_rank: int, visible: int, own_launcher: bool) -> None:
    with pytest.raises(InputError, match=f"LOCAL_RANK is {local_rank}, but {visible} GPUs are visible"):
        local_cuda_index(local_rank, visible=visible, own_launcher=own_launcher)


def test_float32_is_exact_after_a_model_is_loaded(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_model(golden / "student", vision_config=golden / "clip")
    assert not torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    keep_float32_exact()
    assert not torch.backends.cudnn.allow_tf32


def test_hidden_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    devices.hide_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
