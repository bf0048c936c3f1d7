"""`data` as a section and as a list of sections: keys, names, messages, and the jobs made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkd
from alignkd.pipeline.config.run_config import RunConfig, load_run_config
from alignkd.vlm.errors import InputError

WriteConfig = Callable[..., Path]


@pytest.fixture
def write(write_config: WriteConfig, tmp_path: Path) -> Callable[[Any], Path]:
    """`write(data)`: a complete configuration with this section `data`."""

    def make(data: Any) -> Path:
        path = write_config()
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": data}))
        return path

    return make


def test_a_section_is_a_list_of_one(write: Callable[[Any], Path]) -> None:
    section = {"conversations": "a/train-00000-of-00012.parquet", "images": "pictures", "max_tokens": 100}
    one, listed = (load_run_config(write(given), "train") for given in (section, [section]))
    assert one == listed and one.max_tokens == 100
    job = one.train_job()
    assert job.images == Path("pictures") and job.images_of == {}
    assert one.dump_job().data == listed.dump_job().data == one.data_sets


def test_a_list_shares_its_limit_and_keeps_it_in_the_file_of_a_run(write: Callable[[Any], Path]) -> None:
    data = [
        {"conversations": "a.json", "images": "x", "template": "plain"},
        {"conversations": "b/*.json", "max_tokens": 77, "share": 0.25, "weight": 2.0, "roles": {"bot": "gpt"}},
        {"conversations": "c", "name": "own", "system": "Be brief."},
    ]
    config = load_run_config(write(data), "run")
    job = config.train_job()
    assert (job.max_tokens, job.template, job.images) == (77, "plain", None)
    assert job.images_of == {"a": Path("x"), "b": None, "own": None}
    assert [one.share for one in config.dump_job().data] == [1.0, 0.25, 1.0]
    assert job.configuration is not None and RunConfig.model_validate(job.configuration) == config


PROBLEMS = {
    r"data\.images: expected a path, found the number 3": {"conversations": "a", "images": 3},
    r"data\.1\.images: expected a path, found the number 3": [
        {"conversations": "a"}, {"conversations": "b", "images": 3}
    ],
    r"data\.1\.imags: unknown key \(did you mean 'images'": [
        {"conversations": "a"}, {"conversations": "b", "imags": "x"}
    ],
    r"data\.0\.conversations: missing": [{"images": "x"}],
    r"data: an empty list": [],
    r"data: expected a section with keys, or a list of them, found the text 'a.json'": "a.json",
    r"data\.0: expected a section with keys, found the text 'a.json'": ["a.json"],
    r"data: max_tokens is 5 in data\.0 and 6 in data\.1": [
        {"conversations": "a", "max_tokens": 5}, {"conversations": "b", "max_tokens": 6}
    ],
    r"data: data sets x/a.json and y/a.json are both named 'a'; set data\.name of one$": [
        {"conversations": "x/a.json"}, {"conversations": "y/a.json"}
    ],
    r"data\.share: expected above 0, found 0": {"conversations": "a", "share": 0},
    r"data\.share: expected at most 1, found 1.5": {"conversations": "a", "share": 1.5},
    r"data\.weight: expected above 0": {"conversations": "a", "weight": 0},
    r"data\.roles\.bot: expected 'human', 'gpt' or 'system', found 'robot'": {
        "conversations": "a", "roles": {"bot": "robot"}
    },
    r"data\.name: expected letters, digits": {"conversations": "a", "name": "a b"},
}  # fmt: skip


@pytest.mark.parametrize("named", PROBLEMS)
def test_a_problem_is_one_line_with_the_place_in_the_list(write: Callable[[Any], Path], named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        load_run_config(write(PROBLEMS[named]), "dump")
    assert "\n" not in str(error.value) and "1 problem: " in str(error.value)


def test_jobs_take_both_forms(write_config: WriteConfig) -> None:
    path = write_config(drop=("student", "train"))
    listed = [{"conversations": "a.json"}, {"conversations": "b.json"}]
    job = alignkd.dump_job(path, data=listed)
    assert [str(one.path) for one in job.data] == ["a.json", "b.json"]
    assert alignkd.dump_job(path, data={"share": 0.5}).data[0].share == 0.5
    with pytest.raises(TypeError, match="section data is"):
        alignkd.dump_job(path, data=["a.json"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="section teacher is"):
        alignkd.dump_job(path, teacher=listed)
