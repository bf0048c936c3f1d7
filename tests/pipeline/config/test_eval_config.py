"""The section `eval`: its keys, where it may write, and where a run's evaluation is found again."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.pipeline.config.eval_place import EVALUATED, evaluations_of, keep_place
from alignkd.pipeline.config.recipes import load_stage, load_stages
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.sections.eval_config import EvalConfig
from alignkd.vlm.errors import InputError


def write(folder: Path, evaluation: Any, **changes: Any) -> Path:
    """A configuration with the section."""
    sections: dict[str, Any] = {
        "data": {"conversations": str(folder / "data.json")},
        "teacher": {"checkpoint": str(folder / "teacher")},
        "student": {"checkpoint": str(folder / "student")},
        "store": {"path": str(folder / "store")},
        "train": {"output": str(folder / "out"), "steps": 1},
        "eval": evaluation,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (sections | changes).items() if value is not None}))
    return path


def section(folder: Path, values: dict[str, Any]) -> EvalConfig:
    found = load_stage(write(folder, values), "run", None).eval
    assert found is not None
    return found


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    found = section(tmp_path, {"data": "benchmark_data"})
    assert (found.names, found.models, found.dtype, found.limit) == (tuple(BENCHMARKS), ("student",), "float16", None)
    assert found.folder(tmp_path / "out") == tmp_path / "out" / "eval"
    assert load_stage(write(tmp_path, None), "run", None).eval is None


def test_names_are_a_list_or_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    models = {"baseline": "org/model", "teacher": True}
    found = section(tmp_path, {"data": "$PLACE/data", "benchmarks": "pope, gqa", **models})
    assert found == section(tmp_path, {"data": "$PLACE/data", "benchmarks": ["pope", "gqa", "pope"], **models})
    assert (found.names, found.data) == (("pope", "gqa"), tmp_path / "data")
    assert found.models == ("student", "baseline", "teacher")


def test_a_kept_configuration_is_read_again(tmp_path: Path) -> None:
    values = {"data": "d", "benchmarks": "gqa", "out": "here", "limit": 3, "device": "cpu"}
    config = load_stage(write(tmp_path, values), "run", None)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "eval.data: missing"),
        ({"data": "d", "benchmark": "gqa"}, "eval.benchmark: unknown key (did you mean 'benchmarks'?)"),
        ({"data": "d", "benchmarks": "gqa,vqa"}, "mme, mmbench, pope, found the text 'vqa'"),
        ({"data": "d", "benchmarks": []}, "eval.benchmarks: expected a list of gqa"),
        ({"data": "d", "benchmarks": 3}, "found the number 3"),
        ({"data": "d", "benchmarks": [["gqa"]]}, "found a list"),
        ({"data": "d", "limit": 0}, "eval.limit: expected at least 1, found 0"),
        ({"data": "d", "batch": 129}, "eval.batch: expected at most 128"),
        ({"data": "d", "dtype": "half"}, "eval.dtype: expected 'float32', 'bfloat16' or 'float16', found 'half'"),
        ({"data": "$NOT_SET/d"}, "the environment variable NOT_SET"),
    ],
)
def test_a_wrong_key_is_one_line(values: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_stages(write(tmp_path, values), "run")
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_must_be_there_to_be_evaluated(tmp_path: Path) -> None:
    path = write(tmp_path, {"data": "d", "teacher": True}, teacher=None)
    with pytest.raises(InputError, match=r"eval\.teacher is true, but there is no section teacher"):
        load_stages(path, "train")


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("out", "is train.output"),
        ("out/student", "is the student"),
        ("out/checkpoints/eval", "lies in the checkpoints"),
        ("store/eval", "lies in store.path"),
        ("benchmarks", "is eval.data"),
        ("teacher", "is teacher.checkpoint"),
        ("", "contains teacher.checkpoint"),
    ],
)
def test_answers_do_not_go_where_something_else_is(out: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    values = {"data": str(tmp_path / "benchmarks"), "out": str(tmp_path / out)}
    with pytest.raises(InputError) as error:
        load_stages(write(tmp_path, values), "run")
    assert f"eval.out {tmp_path / out} {named}" in str(error.value)


@pytest.mark.parametrize("out", ["out/eval", "out/scores/a", "elsewhere"])
def test_answers_may_go_beside_the_student(out: str, tmp_path: Path) -> None:
    assert section(tmp_path, {"data": "benchmarks", "out": str(tmp_path / out)}).out == tmp_path / out


def test_two_stages_do_not_share_a_folder(tmp_path: Path) -> None:
    stages = [{"name": name, "train": {"output": str(tmp_path / name), "steps": 1}} for name in ("one", "two")]
    path = write(tmp_path, {"data": "d", "out": str(tmp_path / "scores")}, stages=stages)
    with pytest.raises(InputError, match=r"stage one: eval\.out \S+ is eval\.out \S+ of stage two"):
        load_stages(path, "run")
    path = write(tmp_path, {"data": "d"}, stages=stages)
    assert all(stage.config.eval is not None for stage in load_stages(path, "run"))


@given(st.sampled_from(["eval", "scores/of/it", "../elsewhere", "."]), st.sets(st.sampled_from(EVALUATED)))
def test_what_was_kept_is_found(place: str, models: set[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        output.mkdir()
        for model in models:
            (output / place / model).mkdir(parents=True)
            (output / place / model / "results.json").write_text("{}")
        keep_place(output, output / place)
        moved = output.rename(output.with_name("moved")) if ".." not in place else output
        found = evaluations_of(moved)
        assert set(found) == models
        assert all(path.samefile(moved / place / model) for model, path in found.items())


def test_without_a_note_the_default_folder_is_taken(tmp_path: Path) -> None:
    assert evaluations_of(tmp_path) == {}
    (tmp_path / "eval" / "teacher").mkdir(parents=True)
    (tmp_path / "eval" / "teacher" / "results.json").touch()
    assert evaluations_of(tmp_path) == {"teacher": tmp_path / "eval" / "teacher"}
    (tmp_path / "eval.json").write_text("no json")
    assert list(evaluations_of(tmp_path)) == ["teacher"]
