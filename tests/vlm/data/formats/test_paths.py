"""What a path of a data set means: files, folders, patterns; and the format of a file by its content."""

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.data.formats.paths import data_files, natural_order
from alignkd.vlm.data.formats.source import EntrySource
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError

ENTRY = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}


def fill(folder: Path, *names: str) -> Path:
    """Write each file with one entry whose id is the file's name; a Parquet file only by its suffix."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"id": name, **ENTRY}
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([entry]), path)
        else:
            path.write_text(json.dumps([entry]))
    return folder


def ids(path: Path) -> list[str]:
    return [sample.id for sample in opened(path)]


def opened(path: Path) -> EntrySource:
    return open_data(DataSet(path=path))


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    beside = ("README.md", "LICENSE", "_SUCCESS", "dataset_info.json", ".hidden.json", "preview.png", "load.py")
    fill(tmp_path, "part-10.json", "part-9.jsonl", "part-1.json.gz.json", *beside, "images/a.json")
    assert ids(tmp_path) == ["part-1.json.gz.json", "part-9.jsonl", "part-10.json"]


def test_parquet_files_are_found_in_folders_below(tmp_path: Path) -> None:
    names = ("ai2d/train-00000-of-00002.parquet", "ai2d/train-00001-of-00002.parquet", "b/train-00000-of-00001.parquet")
    fill(tmp_path, *names, ".cache/train-00000-of-00001.parquet", "README.md")
    source = opened(tmp_path)
    assert [sample.id for sample in source] == list(names)
    assert [piece.name for piece in source.pieces] == list(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a.json", "b.parquet", "c.zip"), r"files of several kinds \(json: a.json, parquet: b.parquet, zip: c.zip\);"),
        (("a.txt",), "no data file in this folder; give a folder with .parquet, .tar, .json"),
        (
            ("data/train-0.parquet", "data/test-0.parquet"),
            "holds several splits of a data set; give one of them by a pattern: {0}/data/train*.parquet or "
            "{0}/data/test*.parquet",
        ),
        (
            ("a/train-0.parquet", "b/train-0.parquet", "a/validation-0.parquet"),
            "pattern: {0}/a/validation*.parquet or {0}/**/train*.parquet",
        ),
        (("train/0.parquet", "test/0.parquet"), "pattern: {0}/train/*.parquet or {0}/test/*.parquet"),
        (("train.json", "val.json"), "pattern: {0}/val*.json or {0}/train*.json"),
        (("all.json", "test.json"), "pattern: {0}/test*.json or {0}/*.json"),
        (("coco_train.jsonl", "latest_train.jsonl", "coco_test.jsonl"), "{0}/*_train*.jsonl or {0}/*_test*.jsonl"),
        (("data/train-0.parquet", "data/testdev-0.parquet"), "{0}/data/train*.parquet or {0}/data/testdev*.parquet"),
    ],
)
def test_a_folder_that_is_not_one_data_set_is_refused(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    fill(tmp_path, *names)
    expected = said if "\\" in said else re.escape(said.format(tmp_path))
    with pytest.raises(InputError, match=expected) as refused:
        opened(tmp_path)
    assert "\n" not in str(refused.value)


def test_the_patterns_of_the_refusal_can_be_given(tmp_path: Path) -> None:
    fill(tmp_path, "a/train-0.parquet", "b/train-0.parquet", "a/validation-0.parquet", "train-more.parquet")
    with pytest.raises(InputError) as refused:
        opened(tmp_path)
    first, second = str(refused.value).partition("pattern: ")[2].split(" or ")
    assert ids(Path(first)) == ["a/validation-0.parquet"]
    assert ids(Path(second)) == ["a/train-0.parquet", "b/train-0.parquet", "train-more.parquet"]


def test_patterns_and_ranges(tmp_path: Path) -> None:
    fill(tmp_path, *(f"s-{number:02}.json" for number in range(8, 12)), "deep/er/s-3.json", "test-0.json")
    assert ids(tmp_path / "s-{09..11}.json") == ["s-09.json", "s-10.json", "s-11.json"]
    assert ids(tmp_path / "s-0?.json") == ["s-08.json", "s-09.json"]
    assert ids(tmp_path / "**" / "s-*.json")[0] == "deep/er/s-3.json"
    assert ids(tmp_path / "s-{0..0}[89].json") == ["s-08.json", "s-09.json"]
    with pytest.raises(InputError, match=r"s-12\.json is missing; restore the file, or correct the range"):
        opened(tmp_path / "s-{10..12}.json")
    with pytest.raises(InputError, match="no file matches this pattern"):
        opened(tmp_path / "x-*.json")
    with pytest.raises(InputError, match=r"\{12..8\} holds 0 numbers"):
        opened(tmp_path / "s-{12..8}.json")
    with pytest.raises(InputError, match=r"none.json: cannot be read \(No such file"):
        opened(tmp_path / "none.json")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    fill(tmp_path, "a[1].json", "a1.json")
    assert ids(tmp_path / "a[1].json") == ["a[1].json"]


def test_a_pattern_of_several_kinds_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "a.parquet")
    with pytest.raises(InputError, match=r"files of several kinds \(json: a.json, parquet: a.parquet\)"):
        opened(tmp_path / "a.*")


def test_the_content_goes_before_the_suffix(tmp_path: Path) -> None:
    fill(tmp_path, "a.parquet")
    (tmp_path / "a.parquet").rename(tmp_path / "a.json")
    assert ids(tmp_path / "a.json") == ["a.parquet"]
    text = json.dumps([{"id": "x", **ENTRY}])
    for name in ("b.parquet", "b.tar", "b.data"):
        (tmp_path / name).write_text(text)
        assert ids(tmp_path / name) == ["x"]
    word = text.replace('"x"', json.dumps("x".ljust(257 - text.index('"x"') - 1, ".") + "ustar"))
    (tmp_path / "d.json").write_text(word)
    assert word[257:262] == "ustar" and len(opened(tmp_path / "d.json")) == 1
    (tmp_path / "c.tar").write_bytes(gzip.compress(text.encode()))
    assert ids(tmp_path / "c.tar") == ["x"]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "a.arrow",
            b"ARROW1\0\0",
            "arrow, expected JSON, JSON lines, Parquet, or a tar of WebDataset; convert it to JSON",
        ),
        ("a.parquet", b"PARE1234", "encrypted parquet, expected .*; write it without encryption"),
        (
            "a.parquet",
            b"version https://git-lfs",
            "a pointer of Git LFS, not the file, .*; fetch the file with git lfs",
        ),
        ("a.parquet", b"", "damaged or truncated Parquet"),
        ("a.tar", b"", "damaged or truncated tar"),
        ("a.tar", b"abc" * 400, "damaged or truncated tar"),
        ("a.json", b"", "the file is empty"),
    ],
)
def test_other_formats_are_named_with_the_step(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: {said}") as refused:
        opened(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "b.json")
    (tmp_path / "c.json").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    reported: list[tuple[int, int]] = []
    open_data(DataSet(path=tmp_path), progress=lambda done, total: reported.append((done, total)))
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert reported == sorted(reported) and reported[-1] == (total, total)


@given(numbers=st.lists(st.integers(0, 10**6), unique=True, max_size=9), width=st.integers(1, 5))
def test_numbers_in_names_are_ordered_by_value(numbers: list[int], width: int) -> None:
    paths = [Path(f"a/part-{number:0{width}}-of-9.tar") for number in numbers]
    assert natural_order(paths) == tuple(Path(f"a/part-{number:0{width}}-of-9.tar") for number in sorted(numbers))


def test_a_file_is_itself(tmp_path: Path) -> None:
    assert data_files(fill(tmp_path, "test.json") / "test.json") == (tmp_path / "test.json",)
