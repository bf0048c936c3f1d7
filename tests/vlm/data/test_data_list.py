"""Several data sets as one list, the share that is taken of each, and their names."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.data.data_list import DataList, check_image_folders, chosen, data_set_names
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet, Piece
from alignkd.vlm.errors import InputError

TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]


def write(path: Path, count: int, **fields: object) -> Path:
    path.write_text(json.dumps([{"id": f"{path.stem} {n}", "conversations": TURNS, **fields} for n in range(count)]))
    return path


def test_samples_are_numbered_through(tmp_path: Path) -> None:
    sets = [
        DataSet(path=write(tmp_path / "a.json", 3)),
        DataSet(path=write(tmp_path / "b.json", 40), share=0.5, images=tmp_path),
        DataSet(path=write(tmp_path / "c.json", 2)),
    ]
    samples = DataList(sets)
    taken = chosen(40, 0.5).tolist()
    assert len(samples) == 3 + len(taken) + 2 and 10 < len(taken) < 30
    names = [f"a {n}" for n in range(3)] + [f"b {n}" for n in taken] + [f"c {n}" for n in range(2)]
    again = pickle.loads(pickle.dumps(samples))
    assert [sample.id for sample in samples] == [sample.id for sample in again] == names
    assert [samples[index].index for index in range(len(samples))] == list(range(len(samples)))
    assert samples[-1].id == "c 1" and samples.entry(4)["id"] == names[4]
    assert samples[3].folder == tmp_path and samples[0].folder is None
    assert [source.start for source in samples.sources] == [0, 3, 3 + len(taken)]
    assert [samples.source_of(index) for index in (0, 3, len(samples) - 1)] == [0, 1, 2]
    assert samples.where(3) == tmp_path / "b.json"
    assert [piece.num_samples for piece in samples.pieces] == [3, 40, 2]
    assert samples.starts_with(samples.pieces[1], 3) is True and not samples.starts_with(samples.pieces[0], 3)
    with pytest.raises(IndexError):
        samples[len(samples)]


@given(st.integers(0, 3000), st.integers(0, 500), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_share_keeps_its_samples_when_the_data_grow_and_when_it_grows(
    count: int, more: int, share: float, other: float
) -> None:
    taken, later = chosen(count, share), chosen(count + more, share)
    assert later[: len(taken)].tolist() == taken.tolist() and (later[len(taken) :] >= count).all()
    low, high = sorted((share, other))
    assert set(chosen(count, low).tolist()) <= set(chosen(count, high).tolist())
    assert abs(len(taken) - share * count) <= 6 * np.sqrt(count) + 1


def test_a_share_is_pinned_and_without_a_pattern() -> None:
    """Existing stores depend on these very numbers."""
    assert chosen(20, 0.5).tolist() == PINNED
    steps = np.diff(chosen(100_000, 0.1))
    assert abs(steps.mean() - 10) < 0.2 and abs(steps.std() / 9.5 - 1) < 0.05  # a geometric distribution


PINNED = [1, 2, 4, 5, 6, 8, 10, 16, 18]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/train.json", "train"),
        ("train.jsonl.gz", "train"),
        ("hub/train-00003-of-00012.parquet", "train"),
        ("hub/train-00003-of-00012-0a1b2c3d4e5f.parquet", "train"),
        ("hub/data/train-*.parquet", "train"),
        ("hub/llava/*.json", "llava"),
        ("hub/llava/**/*.json", "llava"),
        ("shards/{00000..00012}.tar", "shards"),
        ("hub/cauldron", "cauldron"),
        ("v1.5_mix665k.json", "v1.5_mix665k"),
        (f"{150 * 'x'}.json", 100 * "x"),
    ],
)
def test_a_name_is_made_from_the_path(path: str, name: str) -> None:
    assert data_set_names([DataSet(path=Path(path))]) == [name]


def test_problems_are_one_line_that_names_the_data_set(tmp_path: Path) -> None:
    good, empty = write(tmp_path / "good.json", 2), write(tmp_path / "empty.json", 0)
    cases = {
        f"data sets {good} and {good} are both named 'good'; set data.name of one": [DataSet(path=good)] * 2,
        f"{empty}: contains no conversations": [DataSet(path=good), DataSet(path=empty)],
        f"{tmp_path / 'none.json'}": [DataSet(path=good), DataSet(path=tmp_path / "none.json")],
        f"{good}: share 0.0001 takes none of 2 samples": [DataSet(path=good, share=0.0001)],
    }
    for problem, sets in cases.items():
        with pytest.raises(InputError) as error:
            DataList(sets)
        assert problem in str(error.value) and "\n" not in str(error.value)


def test_each_data_set_needs_the_folder_of_its_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with_images = write(tmp_path / "shown.json", 2, image="a.png")
    text = DataSet(path=write(tmp_path / "text.json", 2))
    sets = [text, DataSet(path=with_images, images=tmp_path / "images")]
    check_image_folders(DataList(sets), sets)
    for images, problem in ((None, "is missing"), (tmp_path / "none", "not a folder")):
        sets = [text, DataSet(path=with_images, images=images)]
        with pytest.raises(InputError, match=rf"shown\.json: has samples with images, but data\.images .*{problem}"):
            check_image_folders(DataList(sets), sets)


LIST_ENDINGS = ("]", "\n]", "\n]\n", "]\r\n", " \t]\n\n")
ENDINGS = [*((".json", ending) for ending in LIST_ENDINGS), (".jsonl", ""), (".jsonl", "\n"), (".jsonl", "\n\n")]


@pytest.mark.parametrize(("suffix", "ending"), ENDINGS)
def test_a_file_that_grew_begins_with_the_old_one(tmp_path: Path, suffix: str, ending: str) -> None:
    """Both by the bytes of its entries and by those of the whole old file, which ended as files do."""
    entries = [json.dumps({"id": n}) for n in range(5)]
    path, old = tmp_path / f"a{suffix}", tmp_path / f"old{suffix}"
    start, between = ("", "\n") if suffix == ".jsonl" else ("[", ",\n")
    old.write_text(start + between.join(entries[:3]) + ending)
    path.write_text(start + between.join(entries) + ending)
    before, after = open_data(DataSet(path=old)), open_data(DataSet(path=path))
    (piece,) = before.pieces
    whole = Piece(name="a", num_samples=3, sha256=before.sha256)
    assert after.starts_with(piece, 0) and after.starts_with(whole, 0) and before.starts_with(whole, 0)
    for count in (2, 4, 9):
        assert not after.starts_with(Piece(name="a", num_samples=count, sha256=before.sha256), 0)
    path.write_text(start + between.join(['{"id": 7}', *entries[1:]]) + ending)
    assert not open_data(DataSet(path=path)).starts_with(whole, 0) and not open_data(DataSet(path=path)).starts_with(
        piece, 0
    )
