"""`student.trained` and `student.lora` on the command line: refusals before anything heavy, and a whole run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkd.vlm.families.mobilevlm.weights import checkpoint as mobilevlm

Alignkd = Callable[..., Any]
WriteConfig = Callable[..., Path]
NO_VISION = {"vision_all": 0.0, "vision_top": 0.0}


@pytest.mark.parametrize(
    ("student", "losses", "said"),
    [
        ({"trained": "head"}, {}, "student.trained: expected all, projector, decoder, lora or a mapping"),
        ({"trained": {"layers": [2, 1]}}, {}, "the first is after the last"),
        ({"trained": {"layers": [0, 9]}}, NO_VISION, "has 3 decoder layers; the last one is 2"),
        (
            {"trained": "all", "lora": {"rank": 4}},
            {},
            "there are keys of lora; set trained to 'lora' or leave lora out",
        ),
        ({"quantization": "nf4"}, {}, "quantised weights cannot be trained, only LoRA beside them"),
        ({"trained": "projector", "quantization": "int8"}, {}, "set trained to 'lora' or quantization to 'none'"),
        ({"trained": "decoder"}, {}, "set losses.vision_all and losses.vision_top to 0, or train 'all'"),
        ({"lora": {"projector": False}}, {}, "(student.lora.projector: true)"),
        ({"trained": {"layers": [1, 1]}}, NO_VISION, "trains nothing that its queries and keys depend on"),
        ({"lora": {"projector": False, "targets": ["v_proj"]}}, NO_VISION, "compares the attention of decoder layer 0"),
        (
            {"lora": {"targets": "q_proj"}},
            {},
            "matches no linear layer of the decoder; its layers are layers.{0-2}.mlp",
        ),
        ({"lora": {"targets": ["q_proj", "lm_head"]}}, {}, "the head gets no LoRA"),
        ({"lora": {"targets": "("}}, {}, "is not a regular expression"),
        ({"lora": {"targets": []}}, {}, "student.lora.targets: expected 'all-linear', a regular expression or a list"),
        ({"lora": {"rank": 0}}, {}, "student.lora.rank: expected at least 1, found 0"),
    ],
    ids=str,
)
def test_a_choice_that_does_not_fit_is_one_line_before_the_teacher_runs(
    student: dict[str, Any],
    losses: dict[str, float],
    said: str,
    alignkd_here: Alignkd,
    write_config: WriteConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(mobilevlm, "build_model", loaded)
    done = alignkd_here("run", write_config(student=student, train={"losses": losses}))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr


def test_quantisation_without_its_library_is_one_line(
    alignkd_here: Alignkd, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    done = alignkd_here("run", write_config(student={"lora": {}, "quantization": "nf4"}))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "needs bitsandbytes, which is not installed" in done.stderr


def test_a_run_with_lora_from_a_configuration(
    alignkd_here: Alignkd, alignkd_prepared: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    """Dumped, trained in a process of its own, planned with the same line, and asked like any other student."""
    student = {"lora": {"rank": 2, "dropout": 0.1}, "quantization": "nf4"}
    config = write_config(student=student, train={"gradient_checkpointing": True, "learning_rate": 1e-2})
    assert alignkd_prepared("dump", config).returncode == 0
    done = alignkd_prepared("train", config)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stderr.splitlines() if "trains: " in line)
    page = alignkd_here("plan", config).stdout
    shown = line.partition("trains: ")[2]
    assert f"trains    {shown}, and " in page and "LoRA of rank 2 on 21 linear layers and the projector" in shown
    assert json.loads(alignkd_here("plan", config, "--json").stdout)["trained"]["text"] == shown
    saved = load_file(tmp_path / "out" / "lora" / "adapter_model.safetensors")
    assert any(bool(torch.any(value != 0)) for name, value in saved.items() if "lora_B" in name)
    asked = alignkd_here(
        "ask", tmp_path / "out" / "student", "what is this?", "--max-new-tokens", "2", "--device", "cpu"
    )
    assert asked.returncode == 0, asked.stderr
