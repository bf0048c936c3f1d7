"""One data set as JSON, JSON lines, gzip, Parquet and tar: the same samples, images and labels."""

import base64
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import data_formats
import pytest
import tiny_data

from alignkd.vlm.data.formats.source import EntrySource
from alignkd.vlm.data.images import image_files
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet, Piece
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.examples import Preparation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tiny_data.TinyData:
    return tiny_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def builder(golden: Path) -> Preparation:
    checkpoint = open_checkpoint(str(golden / "teacher"), vision_config=golden / "clip", weights=False)
    return checkpoint.preparation("v1")


def opened(path: Path, images: Path | None) -> EntrySource:
    return open_data(DataSet(path=path, images=images))


def content(sample: Sample) -> Any:
    return sample.index, sample.id, sample.images, sample.turns, sample.problem, image_files(sample)


@pytest.mark.parametrize("name", data_formats.FORMATS)
def test_samples_images_and_labels_are_equal(
    name: str, data: tiny_data.TinyData, builder: Preparation, tmp_path: Path
) -> None:
    plain = opened(data.conversations, data.images)
    path = data_formats.write(tmp_path / name, data.entries, data.images)
    holds_images = name in data_formats.HOLD_IMAGES
    source = opened(path, None if holds_images else data.images)
    assert (source.path, len(source), source.holds_images) == (path, len(plain), holds_images)
    assert list(map(content, source)) == list(map(content, plain))
    for found, expected in zip(source, plain, strict=True):
        example = builder.build(found.turns, image_files(found))
        wanted = builder.build(expected.turns, image_files(expected))
        assert example.labels.tolist() == wanted.labels.tolist()
        assert example.input_ids.tolist() == wanted.input_ids.tolist()
    assert content(source[-1]) == content(plain[len(plain) - 1])
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.parquet", "data.tar"])
def test_pickled_copies_in_other_processes_read_the_same(name: str, data: tiny_data.TinyData, tmp_path: Path) -> None:
    source = opened(data_formats.write(tmp_path / name, data.entries, data.images), data.images)
    expected = list(map(content, source))  # files are open before the others start
    copy = pickle.loads(pickle.dumps(source))
    assert list(map(content, copy)) == expected and copy.pieces == source.pieces
    for start in ("fork", "spawn"):
        with multiprocessing.get_context(start).Pool(1) as pool:
            found = pool.starmap(EntrySource.__getitem__, [(source, number) for number in (7, 0, 9)])
        assert list(map(content, found)) == [expected[number] for number in (7, 0, 9)]


def test_a_gzipped_file_is_identified_by_its_text(data: tiny_data.TinyData, tmp_path: Path) -> None:
    plain = opened(data_formats.write(tmp_path / "data.jsonl", data.entries, data.images), None)
    packed = opened(data_formats.write(tmp_path / "data.jsonl.gz", data.entries, data.images), None)
    (piece,), (other,) = plain.pieces, packed.pieces
    assert (piece.sha256, plain.sha256) == (other.sha256, packed.sha256)
    assert packed.starts_with(piece, 0) and plain.starts_with(other, 0)


def test_a_source_begins_with_the_pieces_that_it_had(data: tiny_data.TinyData, tmp_path: Path) -> None:
    def source(folder: Path, *parts: Any) -> EntrySource:
        folder.mkdir()
        for number, entries in enumerate(parts):
            (folder / f"{number}.jsonl").write_text("\n".join(map(json.dumps, entries)))
        return opened(folder, None)

    entries = data.entries
    before = source(tmp_path / "before", entries[:3], entries[3:5])
    assert [piece.name for piece in before.pieces] == ["0.jsonl", "1.jsonl"]
    grown = source(tmp_path / "grown", entries[:3], entries[3:7], entries[7:])
    first, second = before.pieces
    assert grown.starts_with(first, 0) and grown.starts_with(second, 3)
    assert not grown.starts_with(second, 0) and not grown.starts_with(first, 3) and not grown.starts_with(first, 2)
    reordered = source(tmp_path / "reordered", entries[3:5], entries[:3])
    assert not reordered.starts_with(first, 0) and reordered.starts_with(first, 2)
    assert not before.starts_with(Piece(name="x", num_samples=9, sha256=first.sha256), 0)


@pytest.mark.parametrize("name", ["data.parquet", "data.tar"])
def test_files_that_hold_images_are_identified_as_a_whole(name: str, data: tiny_data.TinyData, tmp_path: Path) -> None:
    source = opened(data_formats.write(tmp_path / name, data.entries, data.images), None)
    fewer = opened(data_formats.write(tmp_path / f"fewer-{name}", data.entries[:3], data.images), None)
    assert source.starts_with(source.pieces[0], 0)
    assert not source.starts_with(fewer.pieces[0], 0)


@pytest.mark.parametrize("name", ["data.parquet", "data.tar"])
def test_a_file_that_changes_is_noticed(name: str, data: tiny_data.TinyData, tmp_path: Path) -> None:
    path = data_formats.write(tmp_path / name, data.entries, data.images)
    source = opened(path, None)
    with path.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(InputError, match=rf"{name}: changed while in use, was .* now .*; start again"):
        source[0]
    with pytest.raises(InputError, match=r"changed while in use"):
        source.pieces  # noqa: B018


def test_images_as_base64_in_json_are_found(data: tiny_data.TinyData, tmp_path: Path) -> None:
    picture = base64.b64encode((data.images / "square.png").read_bytes()).decode()
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**data.entries[0], "image": picture}))
    source = opened(path, None)
    assert source.holds_images and image_files(source[0]) == ((data.images / "square.png").read_bytes(),)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl.gz"])
def test_a_rare_image_in_json_is_longer_than_other_entries(name: str, data: tiny_data.TinyData, tmp_path: Path) -> None:
    picture = base64.b64encode((data.images / "square.png").read_bytes()).decode()
    entries = [data.entries[1]] * 400
    path = data_formats.write(tmp_path / name, entries, data.images)
    assert not opened(path, None).holds_images
    entries[137] = {**data.entries[0], "image": picture}
    assert opened(data_formats.write(path, entries, data.images), None).holds_images


def test_a_table_like_those_of_the_cauldron_is_read(data: tiny_data.TinyData, tmp_path: Path) -> None:
    pictures = [(data.images / name).read_bytes() for name in ("square.png", "tall.jpg")]
    texts = [{"user": "what?", "assistant": "a cat", "source": "x"}, {"user": "why?", "assistant": "so", "source": "x"}]
    row = {"images": [{"bytes": picture, "path": None} for picture in pictures], "texts": texts}
    source = opened(data_formats.write_parquet(tmp_path / "train-00000-of-00001.parquet", iter([row, row])), None)
    sample = source[1]
    assert source.holds_images and image_files(sample) == tuple(pictures) and sample.problem is None
    assert [turn.value for turn in sample.turns] == ["<image>\n<image>\nwhat?", "a cat", "why?", "so"]


def test_a_role_and_a_system_prompt_of_the_user_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"messages": [{"role": "cat", "content": "miaow"}, {"role": "assistant", "content": "sit"}]}')
    assert "data.roles" in (opened(path, None)[0].problem or "")
    sample = open_data(DataSet(path=path, roles={"cat": "human"}, system="be brief"))[0]
    assert [(turn.speaker, turn.value) for turn in sample.turns] == [
        ("system", "be brief"),
        ("human", "miaow"),
        ("gpt", "sit"),
    ]
