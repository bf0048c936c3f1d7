"""Step 8: `alignkd dump`, `train` and `plan --probe` through the command line, and the kernels of one training step."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from alignkd.pipeline.config.yaml_core import dump_yaml
from gpu_steps.check import Check
from gpu_steps.golden import GOLDEN, IMAGES, samples

PROBED = 4
KERNELS = 20


def run(check: Check) -> None:
    """Run the three commands on the golden models, then profile a step."""
    folder = check.out / "commands"
    config = write_config(folder, check.device)
    for arguments in (("dump",), ("train",), ("plan", "--probe", str(PROBED), "--json")):
        alignkd(check, folder, config, *arguments)
    losses = [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    check.figures["loss"] = [losses[0], losses[-1]]
    check.expect(losses[-1] < losses[0], "the loss does not fall")
    write_profile(check, folder)


def write_config(folder: Path, device: str) -> Path:
    """A run of the golden models in bfloat16 on a GPU, in float32 on a CPU."""
    folder.mkdir(parents=True)
    (folder / "data.json").write_text(json.dumps(samples()))
    dtype = "bfloat16" if device == "cuda" else "float32"
    values = {
        "data": {"conversations": str(folder / "data.json"), "images": str(IMAGES), "template": "v1"},
        "teacher": {
            "checkpoint": str(GOLDEN / "teacher"),
            "vision_config": str(GOLDEN / "clip"),
            "dtype": dtype,
            "device": device,
            "sanity": "off",  # its weights are random
        },
        "student": {"checkpoint": str(GOLDEN / "student"), "vision_config": str(GOLDEN / "clip"), "dtype": dtype},
        "store": {"path": str(folder / "store")},
        "train": {
            "output": str(folder / "run"),
            "steps": 8,
            "micro_batch": 4,
            "learning_rate": 1e-3,
            "preset": "paper",
            "report_to": "none",
        },
    }
    config = folder / "run.yaml"
    config.write_text(dump_yaml(values), encoding="utf-8")
    return config


def alignkd(check: Check, folder: Path, config: Path, *arguments: str) -> None:
    """Run one command; its output goes to a file, its duration to the figures."""
    name, *options = arguments
    began = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        ended = subprocess.run(
            [sys.executable, "-m", "alignkd.pipeline.cli", name, str(config), *options], stdout=log, stderr=log
        )
    check.figures[f"{name} seconds"] = round(time.monotonic() - began, 1)
    check.expect(ended.returncode == 0, f"alignkd {name} ended with exit code {ended.returncode}; {folder}/{name}.log")


def write_profile(check: Check, folder: Path) -> None:
    """Write a trace of one forward and backward pass to `profile.json`, and record its longest kernels."""
    from gpu_steps.waits import micro_batch

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if check.device == "cuda" else [])]
    with profile(activities=activities) as recorded:
        micro_batch(folder, check.device)
    recorded.export_chrome_trace(str(folder / "profile.json"))
    check.figures["kernels"] = longest(recorded, check.device)


def longest(recorded: Any, device: str) -> dict[str, float]:
    """The operations with the largest time of their own, in milliseconds."""
    clock = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -float(getattr(event, clock)))
    return {event.key[:60]: round(getattr(event, clock) / 1000, 3) for event in events[:KERNELS]}
