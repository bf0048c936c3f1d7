"""Generated answers: one device, and the tokens of the CPU."""

from pathlib import Path

import pytest
import tiny_families
import torch
from check_families import FAMILIES
from golden_jobs import GOLDEN
from pretend_device import move, pretend_device
from processed_samples import processed_samples

from alignkd.teacher_dump.generate.sampling import Sampler
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.generation import Choose, Continuation, generate, most_probable
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.examples import Example

CHOICES: tuple[Choose, ...] = (most_probable, Sampler(keys=(5, -6, 7), temperature=0.8, top_p=0.9))


def answers(model: VisionLanguageModel, prompts: list[Example]) -> list[list[Continuation]]:
    """Three prompts, padded, answered greedily and by drawing."""
    return [generate(model, prompts, limits=[4, 3, 4], stop_ids={9}, choose=choose) for choose in CHOICES]


def check(model: VisionLanguageModel, prompts: list[Example]) -> None:
    here = answers(model, prompts)
    with pretend_device():
        move(model)
        there = answers(model, prompts)
    for one, other in zip(here, there, strict=True):
        assert [found.ids for found in one] == [found.ids for found in other]
        torch.testing.assert_close(
            [found.logprob for found in one], [found.logprob for found in other], atol=1e-4, rtol=0
        )


def test_mobilevlm(registered: object) -> None:
    builder = load_preparation(GOLDEN / "teacher", template="v1", vision_config=GOLDEN / "clip")
    picture = (GOLDEN.parent / "images" / "coffee.png").read_bytes()
    questions = [
        ("<image>\nwhat is it?", [picture]),
        ("a colour?", []),
        ("<image>\nIs the cup full, or not?", [picture]),
    ]
    prompts = [builder.build_question([Turn("human", text)], files) for text, files in questions]
    check(load_model(GOLDEN / "teacher", vision_config=GOLDEN / "clip"), prompts)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, registered: object, tmp_path: Path) -> None:
    folder = tiny_families.build(name, tmp_path / "teacher", seed=1)
    prompts = [sample.example for sample in processed_samples(folder)[:3]]
    check(HuggingFaceCheckpoint(folder, folder).load_model(), prompts)
