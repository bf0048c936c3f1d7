"""Tars of WebDataset: as the library groups them, and what it does not accept."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.vlm.data.formats.entry_file import UnusableEntry
from alignkd.vlm.data.formats.tar.tar_file import WITHOUT_KEY, TarEntries
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError

TURNS = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
ENTRY = json.dumps({"conversations": TURNS}).encode()
Members = Sequence[tuple[str, bytes]]


def write(path: Path, members: Members, *, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def entry_of(tmp_path: Path, *members: tuple[str, bytes]) -> Any:
    entries = TarEntries(write(tmp_path / "data.tar", members))
    assert len(entries) == 1
    return entries[0]


def image(data: bytes, path: str) -> dict[str, Any]:
    return {"bytes": data, "path": path}


NAMES = st.tuples(
    st.sampled_from(["", "a/", "a.b/", "__notes__/"]),
    st.sampled_from(["1", "2", "x_y", "", "__index__"]),
    st.sampled_from([".cls", ".JPG", ".0.png", ".json", "", ".x.y"]),
).map("".join)


@settings(max_examples=150)
@given(names=st.lists(NAMES.filter(lambda name: name.strip("/") != ""), unique=True, max_size=12))
def test_members_are_grouped_as_webdataset_groups_them(names: list[str], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("tar") / "data.tar"
    names = sorted(name for name in names if not name.endswith("/"))
    write(path, [(name, name.encode()) for name in names])
    entries = TarEntries(path)
    found: dict[str, set[str]] = {}
    for number in range(len(entries)):
        key, members = entries._index.sample(number)
        found[key] = {member.suffix for member in members}
        assert [entries._read(member).decode() for member in members] == [member.name for member in members]
    expected: dict[str, set[str]] = {}
    with path.open("rb") as stream:
        raw = webdataset.tariterators.tar_file_iterator(stream)
        for file in raw:
            key, suffix = webdataset.tariterators.base_plus_ext(file["fname"])
            if key is not None:
                expected.setdefault(key, set()).add(suffix.lower())
    assert found == expected


def test_shards_of_the_library_are_read(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "s-%02d.tar"), maxcount=4, verbose=0) as writer:
        for number in range(10):
            writer.write({"__key__": f"k{number}", "json": {"conversations": TURNS}, "jpg": b"%d" % number})
    source = open_data(DataSet(path=tmp_path))
    assert [sample.id for sample in source] == [f"k{number}" for number in range(10)]
    assert [sample.contents for sample in source] == [(b"%d" % number,) for number in range(10)]
    library = webdataset.WebDataset(
        str(tmp_path / "s-{00..02}.tar"), shardshuffle=False, handler=webdataset.reraise_exception
    )
    assert [(entry["__key__"], (entry["jpg"],)) for entry in library] == [
        (sample.id, sample.contents) for sample in source
    ]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_and_scattered_members(tmp_path: Path, form: int) -> None:
    key = "folder/" * 30 + "é" * 120
    members = [(f"{key}.json", ENTRY), ("other.json", ENTRY), (f"{key}.JPG", b"1"), ("other.png", b"2")]
    entries = TarEntries(write(tmp_path / "data.tar", members, form=form))
    assert [(entry["id"], entry["images"]) for entry in (entries[0], entries[1])] == [
        (key, [image(b"1", f"{key}.JPG")]),
        ("other", [image(b"2", "other.png")]),
    ]
    assert entries.holds_images and not entries.is_sequential
    assert entries.where(1) == "members other.json, other.png"


def test_images_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in (10, 2, 0, 1)]
    found = entry_of(tmp_path, ("k.json", ENTRY), *((f"k.{name}", name.encode()) for name in names))
    assert [held["bytes"] for held in found["images"]] == [b"0.jpg", b"1.jpg", b"2.jpg", b"10.jpg"]


@pytest.mark.parametrize(
    ("named", "members", "expected"),
    [
        ("coco/7.jpg", ["jpg"], ["jpg"]),  # one image, whatever its name
        (["b.png", "a.png"], ["0.png", "1.png"], ["0.png", "1.png"]),
        (["1.png", "0.png"], ["0.png", "1.png"], ["1.png", "0.png"]),  # by suffix
        (["k.1.png", "k.0.png"], ["0.png", "1.png"], ["1.png", "0.png"]),  # by base name
        (["in/k.1.png", "in/k.0.png"], ["0.png", "1.png"], ["1.png", "0.png"]),  # by path
        (["1.png"], ["0.png", "1.png"], ["1.png"]),
    ],
)
def test_images_that_the_entry_names(tmp_path: Path, named: Any, members: list[str], expected: list[str]) -> None:
    entry = json.dumps({"image": named, "conversations": TURNS}).encode()
    found = entry_of(tmp_path, ("in/k.json", entry), *((f"in/k.{name}", name.encode()) for name in members))
    held = found["image"] if isinstance(found["image"], list) else [found["image"]]
    assert [one["bytes"].decode() for one in held] == expected
    assert [one["path"] for one in held] == (named if isinstance(named, list) else [named])
    others = {name for name in members if name not in expected}
    assert {key for key in found if key.startswith(".")} == {f".{name}" for name in others}  # counted, not dropped


def test_images_in_parts_of_turns_are_found(tmp_path: Path) -> None:
    parts = [{"type": "image", "image": "0.png"}, {"type": "text", "text": "what?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a cat"}]
    path = write(tmp_path / "data.tar", [("k.json", json.dumps({"messages": messages}).encode()), ("k.0.png", b"1")])
    sample = open_data(DataSet(path=path))[0]
    assert (sample.problem, sample.images, sample.contents) == (None, ("0.png",), (b"1",))


def test_a_named_image_that_is_no_member_is_named(tmp_path: Path) -> None:
    entry = json.dumps({"image": ["0.png", "x.png"], "conversations": TURNS}).encode()
    found = entry_of(tmp_path, ("k.json", entry), ("k.0.png", b"1"))
    assert isinstance(found, UnusableEntry) and found.id == "k"
    assert found.problem.startswith("image 'x.png' is not a member of the sample, which has k.0.png; ")


def test_a_list_of_turns_a_caption_and_other_members(tmp_path: Path) -> None:
    found = entry_of(tmp_path, ("k.json", json.dumps(TURNS).encode()), ("k.txt", b"text"), ("k.mp4", b""))
    assert found == {"id": "k", "conversations": TURNS, ".txt": "k.txt", "video": "k.mp4"}
    path = write(tmp_path / "captions.tar", [("k.txt", "ein Bär\n".encode()), ("k.image.webp", b"1"), ("k.cls", b"3")])
    source = open_data(DataSet(path=path))
    assert source.entry(0) == {
        "id": "k",
        "caption": "ein Bär",
        "images": [image(b"1", "k.image.webp")],
        ".cls": "k.cls",
    }
    assert [turn.value for turn in source[0].turns] == ["<image>", "ein Bär"]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("k.json", b'{"a": 1,}')], r"member 'k.json': broken JSON at line 1, column 9"),
        ([("k.json", b"\xff")], "member 'k.json': not UTF-8"),
        ([("k.json", b"[" * 100_000)], "member 'k.json': JSON that is nested too deeply"),
        ([("k.json", ENTRY), ("k.json", ENTRY)], "the tar has two members 'k.json'"),
    ],
)
def test_a_sample_that_cannot_be_read_is_unusable_alone(tmp_path: Path, members: Members, problem: str) -> None:
    path = write(tmp_path / "data.tar", [*members, ("l.json", ENTRY)])
    first, second = open_data(DataSet(path=path))
    assert first.id == "k" and problem in (first.problem or "")
    assert second.problem is None or "image" in second.problem


def test_links_and_folders(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for name, kind in (("in", tarfile.DIRTYPE), ("in/k.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "elsewhere.jpg"
            tar.addfile(member)
        for name in ("in/k.json", "README", ".hidden"):
            member = tarfile.TarInfo(name)
            member.size = len(ENTRY)
            tar.addfile(member, io.BytesIO(ENTRY))
    entries = TarEntries(tmp_path / "data.tar")
    assert len(entries) == 1 and entries.not_read == {WITHOUT_KEY: 2}
    assert "'in/k.jpg' of the tar is a link, not a file; write the tar with tar --dereference" in entries[0].problem


def test_damaged_and_joined_tars_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "data.tar", [(f"{number}.json", ENTRY * 20) for number in range(30)])
    data = path.read_bytes()
    for size in (700, 3000, len(data) // 2 // 512 * 512, len(data) // 2 + 100):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"data.tar: damaged or truncated tar \(.*\); fetch or write"):
            TarEntries(path)
    damaged = bytearray(data)
    at = data.index(b"7.json")
    damaged[at : at + 300] = b"\x01" * 300
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged or truncated tar \(no end mark"):
        TarEntries(path)
    path.write_bytes(data + data)
    with pytest.raises(InputError, match="more follows after the tar's end at byte"):
        TarEntries(path)
