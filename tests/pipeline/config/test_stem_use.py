"""Which layers of the teacher training takes from a stem, and which pairs of layers `alignkd run` refuses at once."""

from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import available_layers, stem_depth_of, stem_layers_of
from alignkd.pipeline.demo.models import STUDENT, TEACHER_CHECKPOINT, write_configs
from alignkd.pipeline.models.pair import check_pair
from alignkd.student_train.errors import TrainError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.families.mobilevlm.model.config import load_config

STEM: dict[str, Any] = {"vision_all": "stem", "vision_top": "stem"}


@pytest.fixture(scope="module")
def teacher() -> ModelConfig:
    """The demo's teacher, of four layers."""
    return load_config(TEACHER_CHECKPOINT)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The configuration of the demo's student, of two layers."""
    write_configs(tmp_path / "student", STUDENT)
    return tmp_path / "student"


def run_config(student: Path | str, store: dict[str, Any], **train: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {"conversations": "data.json"},
            "teacher": {"checkpoint": str(TEACHER_CHECKPOINT)},
            "student": {"checkpoint": str(student)},
            "store": {"path": "store", **STEM, **store},
            "train": {"output": "out", "steps": 1, **train},
        }
    )


@pytest.mark.parametrize(
    ("store", "layers", "expected"),
    [
        ({"attention": {"layers": "50%-100%", "codec": "stem"}}, None, (2, 3)),
        ({"attention": {"layers": "50%-100%", "codec": "stem"}}, "0%-100%", (2, 3)),
        ({"attention": "stem"}, None, (0,)),
        ({"attention": "stem"}, {0: 0, 1: [1, 2]}, (0, 1, 2)),
        # a band of the student is compared with all layers that the stem gives
        ({"attention": "stem", "stem": {"depth": 3}}, "0%-100%", (0, 1, 2)),
        ({"attention": "float32", "stem": {"depth": 3}}, "0%-100%", (0,)),
    ],
)
def test_layers_of_the_stem(
    store: dict[str, Any], layers: Any, expected: tuple[int, ...], teacher: ModelConfig
) -> None:
    config = run_config("student", store, losses={"attention_layers": layers})
    assert stem_layers_of(config, teacher) == expected
    assert stem_depth_of(config, teacher) == expected[-1] + 1


def test_layers_that_training_has(teacher: ModelConfig) -> None:
    of_two = {"layers": [0, 3], "codec": "float32"}
    assert available_layers(run_config("student", {"attention": of_two}), teacher) == (0, 3)
    taken: dict[str, Any] = {"targets": {"attention": "stem"}}
    assert available_layers(run_config("student", {"attention": of_two, "stem": {"depth": 2}}, **taken), teacher) == (
        0,
    )
    absent = run_config("student", {"attention": of_two}, stem="not-there.safetensors", **taken)
    assert available_layers(absent, teacher) is None


@pytest.mark.parametrize(
    ("store", "layers", "problem"),
    [
        # the vision targets come from the stem, the attention from the store
        ({"attention": "float32"}, {1: 1}, r"layers 0 only; .* dump again with more layers"),
        ({"attention": {"layers": [0, 1], "codec": "float32"}}, {0: 2}, r"teacher's layer 2, .* layers 0, 1 only"),
        ({"attention": {"layers": [0, 1], "codec": "stem"}}, {0: 2}, r"teacher's layer 2, .* layers 0, 1 only"),
        ({"attention": "stem"}, {1: 1}, r"write a deeper stem"),
        ({"attention": "stem"}, "0%-100%", r"holds 2 layers of the student, more than the 1 of the teacher"),
        ({"attention": "stem"}, {2: 0}, r"of the student"),
        ({"attention": "stem", "stem": {"depth": 2}}, {1: 1}, None),
        ({"attention": "stem", "stem": {"depth": 2}}, "0%-100%", None),
        ({"attention": "stem"}, None, None),
    ],
)
def test_pairs_of_layers_are_checked_before_the_teacher_runs(
    store: dict[str, Any], layers: Any, problem: str | None, student: Path
) -> None:
    config = run_config(student, store, losses={"attention_layers": layers})
    if problem is None:
        check_pair(config)
        return
    with pytest.raises(TrainError, match=problem):
        check_pair(config)
