"""docs/python.md: every block of Python runs, in order, in one namespace."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkd

DOCUMENT = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture
def folder(golden: Path, golden_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data, models, `run.yaml` and a finished dump in `store`."""
    links = {"images": golden_images, "data.json": golden / "v1.json"}
    for name, target in (links | {name: golden / name for name in ("teacher", "student", "clip")}).items():
        (tmp_path / name).symlink_to(target)
    # the teacher's weights are random: the checks before the first shard would refuse it
    sections: dict[str, Any] = {
        "data": {"conversations": "data.json", "images": "images"},
        "teacher": {"checkpoint": "teacher", "vision_config": "clip", "sanity": "off"},
        "student": {"checkpoint": "student", "vision_config": "clip"},
        "store": {"path": "store", "profile": "compact", "shard_size": 2},
        "train": {"output": "unused", "steps": 1, "micro_batch": 2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    monkeypatch.chdir(tmp_path)
    alignkd.dump(alignkd.dump_job("run.yaml"))
    return tmp_path


def test_every_block_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))
    assert len(blocks) >= 10
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks:
        line = DOCUMENT.read_text()[: block.start()].count("\n") + 1
        # an error names the line of the document
        exec(compile("\n" * line + block[1], str(DOCUMENT), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "StoreReader('store', 4 records, 2 of 2 shards, zarr)" in printed
    assert "EncodedArray('sqrt_u8', values=uint8[" in printed and "StoreError nowhere" in printed
    assert (folder / "out" / "student" / "config.json").is_file() and (folder / "targets").is_dir()


def test_the_document_names_every_public_name() -> None:
    text = DOCUMENT.read_text()
    unnamed = {"DumpJob", "DumpResult", "TrainJob", "TrainResult", "Manifest", "Record", "__version__"}
    missing = [name for name in alignkd.__all__ if name not in unnamed and name not in text]
    assert missing == []
