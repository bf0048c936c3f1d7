"""The host figure of `alignkd plan` against the memory of a real training and its data workers."""

import ctypes
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from alignkd.pipeline.config.run_config import load_run_config
from alignkd.pipeline.plan.make import make_plan
from alignkd.pipeline.plan.memory import host as plan_host
from alignkd.pipeline.plan.result import PlanOptions
from alignkd.student_train import trainer
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.engine.zero.engine import ZeroEngine
from alignkd.teacher_dump.dump import dump
from alignkd.vlm.families.mobilevlm.model.config import load_config, parse_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model

WriteConfig = Callable[..., Path]


def anonymous_bytes(pid: int | str = "self") -> int:
    """Memory of a process that is no file's, shared or not, after what was freed went back to the system."""
    if pid == "self":
        ctypes.CDLL(None).malloc_trim(0)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def wider_student(golden: Path, folder: Path) -> Path:
    """The golden student with a decoder of 13 million parameters, so that its state stands out."""
    own = load_config(golden / "student", vision_config=golden / "clip").raw
    raw = {**own, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8,
           "num_key_value_heads": 8, "mm_vision_tower": str(golden / "clip")}  # fmt: skip
    model = new_model(parse_config(raw, path=folder / "config.json"), seed=0)
    tower = load_model(golden / "student", vision_config=golden / "clip").model.vision_tower
    model.model.vision_tower.load_state_dict(tower.state_dict())
    save_model(model, folder, tokenizer_from=golden / "student")
    return folder


def test_training_takes_the_host_memory_that_was_planned(
    golden: Path, write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where nothing is pinned: within 15 %; a data worker holds none of it, also after the first step."""
    config = write_config(
        student={"checkpoint": str(wider_student(golden, tmp_path / "wide")), "dtype": "bfloat16"},
        train={"steps": 1, "micro_batch": 1, "global_batch": 2, "optimizer": "adamw_offload", "data_workers": 1,
               "report_to": "none", "losses": {"supervised": 1.0, "logit": 0.0,
               "attention": 0.0, "vision_all": 0.0, "vision_top": 0.0}},
    )  # fmt: skip
    run = load_run_config(config, "plan")
    dump(run.dump_job())
    monkeypatch.setattr(plan_host, "pinned_bytes", int)
    planned = make_plan(run, PlanOptions(host_memory=1 << 40)).student
    assert planned is not None
    state = plan_host.offloaded_of(planned.host_parts)

    before = anonymous_bytes()
    others, grown, worker = set(multiprocessing.active_children()), [0, 0], [0]
    real_step = ZeroEngine.end_micro_batch

    def engine(student: Any, *arguments: Any, **options: Any) -> Engine:
        smallest = torch.nn.Module()  # what the first engine of a process imports is no part of its state
        smallest.model = torch.nn.Linear(2, 2)
        smallest.model.projector_prefixes = ()
        build_engine(cast(Any, smallest), *arguments, **options)
        grown[0] = anonymous_bytes()
        made = build_engine(student, *arguments, **options)
        grown[1] = anonymous_bytes()
        return made

    def step(self: ZeroEngine, factor: float) -> Any:
        outcome = real_step(self, factor)
        (child,) = set(multiprocessing.active_children()) - others
        worker[0] = anonymous_bytes(child.pid or 0)
        return outcome

    monkeypatch.setattr(trainer, "build_engine", engine)
    monkeypatch.setattr(ZeroEngine, "end_micro_batch", step)
    trainer.train(run.train_job())
    assert grown[1] - grown[0] == pytest.approx(state, rel=0.15)
    # What its parent had before there was a model, and what the plan counts for a worker; less than the state alone.
    assert state > plan_host.WORKER_BYTES and 0 < worker[0] < before + plan_host.WORKER_BYTES
