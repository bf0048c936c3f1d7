"""What of a checkpoint is the same whenever it is asked for is computed once."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignkd.vlm.families.mobilevlm.model import sizes
from alignkd.vlm.families.mobilevlm.weights import sources
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint


def opened(golden: Path, who: str) -> MobileVLMCheckpoint:
    return MobileVLMCheckpoint.open(golden / who, vision_config=golden / "clip")


def test_a_size_is_counted_once_for_equal_configurations(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    real = sizes.MobileVLM
    monkeypatch.setattr(sizes, "MobileVLM", lambda config: (built.append(1), real(config))[1])
    monkeypatch.setattr(sizes, "_SIZES", {})
    teacher, student = (opened(golden, who).size() for who in ("teacher", "student"))
    assert len(built) == 2 and teacher.parameters["total"] != student.parameters["total"]
    assert opened(golden, "teacher").size() == teacher and len(built) == 2
    config = opened(golden, "student").config
    config.llama.num_hidden_layers += 1
    assert sizes.model_size(student.name, config).num_layers == student.num_layers + 1 and len(built) == 3
    assert sizes.model_size("another name", config).name == "another name"


def test_the_shapes_in_a_weight_file_are_read_once(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()
    real = sources.weight_shapes

    def shapes(file: Path) -> Any:
        read[file] += 1
        return real(file)

    monkeypatch.setattr(sources, "weight_shapes", shapes)
    teacher = opened(golden, "teacher")
    for _ in range(2):
        teacher.load_model()
    assert read and set(read.values()) == {1}
    opened(golden, "teacher").load_model()  # the file may be another one by now
    assert set(read.values()) == {2}
