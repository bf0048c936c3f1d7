"""A model of transformers over a list of data sets, and the same list dumped in two steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_data
import yaml

from alignkd.storage import StoreReader, verify_store
from alignkd.storage.tools.compare.diff import diff_stores


def test_a_list_in_two_steps_equals_the_list_in_one(
    write_family_config: Callable[..., Path],
    checkpoint: Callable[..., Path],
    data: tiny_data.TinyData,
    alignkd_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model, parts = checkpoint("qwen3_vl"), [tmp_path / "one.json", tmp_path / "two.jsonl"]
    parts[0].write_text(json.dumps(data.entries[:4]))
    parts[1].write_text("".join(json.dumps(entry) + "\n" for entry in data.entries[4:]))
    listed = [{"conversations": str(part), "images": str(data.images)} for part in parts]
    for folder, lists in (("steps", [listed[:1], listed]), ("whole", [listed])):
        (tmp_path / folder).mkdir()
        config = write_family_config(tmp_path / folder, model, {"batch": 1, "sanity": "off"}, inputs="embed")
        sections = yaml.safe_load(config.read_text())
        for given in lists:
            config.write_text(yaml.safe_dump(sections | {"data": given}))
            done = alignkd_here("dump", config)
            assert done.returncode == 0, done.stderr
    steps, whole = (StoreReader(tmp_path / folder / "store") for folder in ("steps", "whole"))
    report = diff_stores(steps, whole)
    assert report.equal and report.matched == len(data.entries) == len(steps)
    assert steps.sources == whole.sources == ["one", "two"] and steps.manifest.additions is not None
    assert verify_store(tmp_path / "steps" / "store", deep=True).ok
