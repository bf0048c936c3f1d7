"""Step 0: installed versions, the device, and a process group of one process on it."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from gpu_steps.check import Check

PACKAGES = ("torch", "transformers", "deepspeed", "bitsandbytes", "numpy", "zarr", "pydantic", "safetensors", "alignkd")


def run(check: Check) -> None:
    """Record versions, device and driver; then import deepspeed, and run a barrier and a broadcast with one rank."""
    check.figures.update(python=platform.python_version(), **{name: installed(name) for name in PACKAGES})
    check.figures.update(torch_cuda=torch.version.cuda, device=device_line(check.device), driver=driver())
    if check.device == "cuda" and not torch.cuda.is_available():
        check.expect(False, f"no usable GPU; torch {torch.__version__} is built for CUDA {torch.version.cuda}")
        return
    import alignkd.student_train.engine.zero.engine
    from alignkd.student_train.distributed.ranks import start_ranks

    assert alignkd.student_train.engine.zero.engine.deepspeed is not None
    ranks = start_ranks()
    check.figures["rank_device"] = str(ranks.device)
    check.expect(ranks.device.type == check.device, f"ranks train on {ranks.device}, expected {check.device}")
    check.figures["backend"] = torch.distributed.get_backend()
    ranks.barrier()
    check.expect(ranks.from_first({"a": 1}) == {"a": 1}, "an object was not broadcast")
    check.expect(ranks.sum([1.0, 2.0]) == [1.0, 2.0], "numbers were not summed")


def installed(name: str) -> str | None:
    """The version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_line(device: str) -> str:
    """Description of the device."""
    if device == "cpu" or not torch.cuda.is_available():
        return f"cpu, {torch.get_num_threads()} threads"
    found = torch.cuda.get_device_properties(0)
    return f"cuda:0 {found.name}, {found.total_memory / 2**30:.1f} GiB, capability {found.major}.{found.minor}"


def driver() -> str | None:
    """The driver's version, from nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
