"""A dump and a training find their checkpoint once: one request to the hub, one reading of each part."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.config.run_config import RunConfig, load_run_config
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint

WriteConfig = Callable[..., Path]

_listeners: list[Callable[[Path], object]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _listeners and isinstance(arguments[0], str | bytes):
        path = Path(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode())
        for listener in _listeners:
            listener(path)


sys.addaudithook(_audit)


@pytest.fixture
def requests(golden: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the hub is asked for each model; `org/teacher` and `org/student` are the golden ones."""
    counted: Counter[str] = Counter()

    def snapshot(name: str, **_: Any) -> str:
        counted[name] += 1
        return str(golden / name.partition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return counted


@pytest.fixture
def reads(golden: Path) -> Iterator[Counter[str]]:
    """How often each file of the two checkpoints is opened in Python, by `teacher/config.json` and the like."""
    counted: Counter[str] = Counter()

    def note(path: Path) -> None:
        if path.is_relative_to(golden) and path.parent.name in ("teacher", "student"):
            counted[f"{path.parent.name}/{path.name}"] += 1

    _listeners.append(note)
    yield counted
    _listeners.remove(note)


def run_config(write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, folder: Path, **store: Any) -> RunConfig:
    monkeypatch.chdir(folder)  # where there is no folder `org/teacher`
    models = {name: {"checkpoint": f"org/{name}"} for name in ("teacher", "student")}
    models["teacher"]["sanity"] = "off"
    return load_run_config(write_config(**models, store=store), "run")


@pytest.mark.parametrize(
    "store",
    [
        {},
        {"logits": {"kind": "hidden"}},
        {"attention": "stem", "vision_top": "stem", "vision_all": "stem"},
    ],
    ids=["full", "hidden", "stem"],
)
def test_a_dump_and_a_training(
    store: dict[str, Any],
    write_config: WriteConfig,
    requests: Counter[str],
    reads: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    config = run_config(write_config, monkeypatch, tmp_path, **store)
    dump(config.dump_job())
    assert requests == {"org/teacher": 1}
    # once for its content, once for the fingerprint
    assert reads["teacher/config.json"] == 2 and reads["teacher/tokenizer_config.json"] == 1, reads
    requests.clear()
    reads.clear()
    train(config.train_job())
    assert requests == {"org/student": 1}
    # the export copies the tokenizer's files
    assert reads["student/config.json"] == 2 and reads["student/tokenizer_config.json"] == 2, reads


def test_weights_that_are_not_needed_are_not_asked_for(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def snapshot(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(golden / "student")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    opened = MobileVLMCheckpoint.open("org/student", vision_config=golden / "clip", weights=False)
    opened.preparation("v1")
    assert len(asked) == 1 and not any("model-" in pattern or "model.s" in pattern for pattern in asked[0])
    assert opened.fingerprint and opened.load_model().config is opened.config
    assert len(asked) == 2 and "model.safetensors" in asked[1]
