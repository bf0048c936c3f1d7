"""Everything that decides a sample's tokens and pixels changes a fingerprint, and nothing else does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.inputs.opening import open_preparation
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation

FolderOf = Callable[[str], Path]
Opened = Callable[[str], HuggingFacePreparation]


def changed(file: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        change(content)
        (folder / file).write_text(json.dumps(content))

    return apply


def with_another_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{# a remark #}")


CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "template": (with_another_template, {"template"}),
    "pixels": (
        changed("processor_config.json", lambda c: c["image_processor"].update(image_mean=[0.4] * 3)),
        {"image_processor"},
    ),
    "size": (
        changed(
            "processor_config.json",
            lambda c: c["image_processor"]["size"].update(longest_edge=8000, shortest_edge=2000),
        ),
        {"image_processor", "vision_tokens"},
    ),
    "vocabulary": (
        changed("tokenizer.json", lambda c: c["model"]["merges"].pop()),
        {"tokenizer"},
    ),
    "padding": (changed("tokenizer_config.json", lambda c: c.update(padding_side="left", model_max_length=77)), set()),
    "sampling": (changed("generation_config.json", lambda c: c.update(temperature=0.5)), set()),
    "who wrote it": (changed("processor_config.json", lambda c: c.update(auto_map={"AutoProcessor": "x.Y"})), set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes(name: str, folder_of: FolderOf, opened: Opened, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("qwen3_vl"), tmp_path / "copy"))
    change, wanted = CHANGES[name]
    change(folder)
    before, after = opened("qwen3_vl").fingerprint, open_preparation(folder).fingerprint
    assert set(before) == {"tokenizer", "template", "image_processor", "vision_tokens"}
    assert {key for key in before if before[key] != after[key]} == wanted


def test_teacher_and_student_of_one_family_have_equal_fingerprints(opened: Opened, tmp_path: Path) -> None:
    other = tiny_families.build("qwen3_vl", tmp_path / "other", seed=5, hidden_size=64, vocab_size=1024)
    assert open_preparation(other).fingerprint == opened("qwen3_vl").fingerprint
    assert open_preparation(other).template_fingerprint == opened("qwen3_vl").fingerprint["template"]
    assert open_preparation(other).num_tokens == opened("qwen3_vl").num_tokens


def test_probes_find_other_ids(opened: Opened) -> None:
    preparation = opened("gemma3")
    probe = json.loads(json.dumps(preparation.probe()))
    preparation.check_probe(probe, "store")
    preparation.check_probe(
        probe | {"a text of another version": preparation.tokenizer.plain("a text of another version")}, "s"
    )
    for name in probe:
        with pytest.raises(InputError, match=r"becomes .* in store; take a model of the same family"):
            preparation.check_probe(probe | {name: [*probe[name], 1]}, "store")
    with pytest.raises(InputError, match="in store"):
        opened("qwen3_vl").check_probe(probe, "store")
    images = {name: ids for name, ids in probe.items() if name.startswith("<image")}
    assert images == {"<image of 640 x 480>": images["<image of 300 x 900>"], **images}  # Gemma: 256 tokens of any size
