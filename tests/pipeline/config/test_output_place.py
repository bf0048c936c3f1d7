"""A run's output must be a separate folder, which is checked before the teacher runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkd.pipeline.config.recipes import load_stages
from alignkd.vlm.errors import InputError


def load(folder: Path, stages: list[dict[str, Any]] | None = None, **changes: Any) -> None:
    """Sections over folders `student`, `teacher` and `data/images`, which exist, and `store`, which does not."""
    for name in ("student", "teacher", "data/images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sections: dict[str, Any] = {
        "data": {"conversations": str(folder / "data/data.json"), "images": str(folder / "data/images")},
        "teacher": {"checkpoint": str(folder / "teacher")},
        "student": {"checkpoint": str(folder / "student")},
        "store": {"path": str(folder / "store")},
        "train": {"output": str(folder / "out"), "steps": 1},
    }
    for section, values in changes.items():
        sections[section] |= {key: value.format(folder) for key, value in values.items()}
    if stages is not None:
        sections["stages"] = yaml.safe_load(yaml.safe_dump(stages).replace("FOLDER", str(folder)))
    (folder / "run.yaml").write_text(yaml.safe_dump(sections))
    load_stages(folder / "run.yaml", "run")


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ("{0}/student", "is student.checkpoint {0}/student"),
        ("{0}/student/out", "lies in student.checkpoint {0}/student"),
        ("{0}/teacher/../teacher", "is teacher.checkpoint {0}/teacher"),
        ("{0}/store", "is store.path {0}/store"),
        ("{0}/store/out", "lies in store.path {0}/store"),
        ("{0}/data/images", "is data.images {0}/data/images"),
        ("{0}/data", "contains data.images {0}/data/images"),
        ("{0}", "contains student.checkpoint {0}/student"),
        ("{0}/link", "is student.checkpoint {0}/student"),
    ],
)
def test_an_output_over_something_else_is_refused(output: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "student")
    with pytest.raises(InputError) as error:
        load(tmp_path, train={"output": output})
    assert f"train.output {output.format(tmp_path)} {named.format(tmp_path)}; choose a separate folder" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_an_output_in_a_validation_store_is_refused(tmp_path: Path) -> None:
    validation = {"validation": {"store": str(tmp_path / "held")}}
    stages = [{"name": "one", "train": {"output": "FOLDER/held/out", **validation}}]
    with pytest.raises(InputError, match=r"held/out lies in train\.validation\.store .*held; choose a separate folder"):
        load(tmp_path, stages=stages)


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"output": "{0}/out/deep"}},
        {"train": {"output": "{0}/student-2"}},  # begins alike, and lies beside
        {"train": {"output": "{0}/data/out"}},
        {"train": {"output": "{0}/data/images/out"}},  # no image is read or written there
        {"store": {"path": "s3://bucket/out"}},
        {"student": {"checkpoint": "out/student"}, "train": {"output": "out"}},  # a hub id
    ],
)
def test_a_folder_of_its_own_is_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    load(tmp_path, **changes)


def stage(name: str, output: str, store: str) -> dict[str, Any]:
    return {"name": name, "store": {"path": f"FOLDER/{store}"}, "train": {"output": f"FOLDER/{output}"}}


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (stage("a", "x", "s"), stage("b", "x", "t"), "stages a and b: both have train.output"),
        (stage("a", "x", "s"), stage("b", "x/y", "t"), "stage b: train.output {0}/x/y lies in {0}/x of stage a"),
        (stage("a", "x/y", "s"), stage("b", "x", "t"), "stage b: train.output {0}/x contains {0}/x/y of stage a"),
        (stage("a", "x", "s"), stage("b", "s", "t"), "stage b: train.output {0}/s is store.path {0}/s of stage a"),
        (stage("a", "t/x", "s"), stage("b", "y", "t"), "stage a: train.output {0}/t/x lies in store.path {0}/t of"),
    ],
)
def test_stages_stay_apart(first: dict[str, Any], second: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, [first, second])
    assert named.format(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_stage_may_start_from_what_the_one_before_wrote(tmp_path: Path) -> None:
    (tmp_path / "x/student").mkdir(parents=True)
    load(tmp_path, [stage("a", "x", "s"), stage("b", "y", "t")])


def test_an_output_over_generated_answers_is_refused(tmp_path: Path) -> None:
    stages = [{"name": "one", "generate": {"output": "FOLDER/answers"}, "train": {"output": "FOLDER/answers/out"}}]
    with pytest.raises(InputError, match=r"answers/out lies in generate\.output .*answers; choose a separate folder"):
        load(tmp_path, stages=stages)
