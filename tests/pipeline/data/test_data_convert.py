"""`alignkd data convert`: what is written reads as what was read; counts, refusals, interruptions."""

import gzip
import hashlib
import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import data_formats
import pytest
import tiny_data
from hypothesis import given, settings
from hypothesis import strategies as st

import alignkd.pipeline.data.convert.convert
from alignkd.pipeline.data.stats.figures import is_listing
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.images import image_files
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.data.written_entry import DIALECTS, Dialect, written_entry

Run = Callable[..., "CompletedProcess[str]"]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: "<" not in text)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A usable sample: an optional system prompt, rounds, masked answers, images in any human turns."""
    turns = []
    if draw(st.booleans()):
        turns.append(Turn("system", draw(TEXTS.filter(str.strip))))
    rounds = draw(st.integers(1, 3))
    trained = draw(st.lists(st.booleans(), min_size=rounds, max_size=rounds).filter(any))
    images: list[str] = []
    for number in range(rounds):
        marks = draw(st.integers(0, 2))
        images += [f"{len(images) + own}.png" for own in range(marks)]
        turns.append(Turn("human", "<image>" * marks + draw(TEXTS)))
        turns.append(Turn("gpt", draw(TEXTS), trained[number]))
    return Sample(index=0, id=draw(TEXTS), images=tuple(images), turns=tuple(turns))


@settings(max_examples=200)
@given(sample=samples(), dialect=st.sampled_from(DIALECTS))
def test_what_is_written_reads_as_the_sample(sample: Sample, dialect: Dialect) -> None:
    entry = json.loads(json.dumps(written_entry(sample, sample.images, dialect)))
    assert sample_of_entry(0, entry) == sample


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tiny_data.TinyData:
    masked = json.loads(json.dumps(tiny_data.ENTRIES[4])) | {"id": "masked", "system": "be brief"}
    masked["conversations"][1]["loss"] = 0
    return tiny_data.write(tmp_path_factory.mktemp("data"), [*tiny_data.ENTRIES, masked])


def content(sample: Sample) -> Any:
    return sample.index, sample.id, sample.turns, sample.problem, image_files(sample)


def read(path: Path, images: Path | None) -> list[Any]:
    return list(map(content, open_data(DataSet(path=path, images=images))))


@pytest.mark.parametrize("name", ["data.json", "data.tar"])
@pytest.mark.parametrize("to", DIALECTS)
def test_a_data_set_reads_the_same_after_each_conversion(
    name: str, to: str, data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path
) -> None:
    path = data_formats.write(tmp_path / name, data.entries, data.images)
    source = ("--images", data.images) if name == "data.json" else ()
    out, images = tmp_path / "new" / "out.jsonl.gz", tmp_path / "new" / "images"
    done = alignkd_here("data", "convert", path, *source, "--to", to, "--out", out, "--images-out", images, "--json")
    found = json.loads(done.stdout)
    assert (found["samples"], found["written"], found["unusable"]) == (11, 11, {})
    expected = read(data.conversations, data.images)
    assert read(out, images) == expected
    assert [turn.trained for turn in expected[-1][2]] == [True, True, False, True, True, True, True]
    # every image once, under the hash of its content
    files = sorted(images.iterdir())
    assert len(files) == len({file.read_bytes() for file in files}) == found["images_written"] == len(tiny_data.IMAGES)
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)
    assert found["images_there"] == sum(len(sample[4]) for sample in expected) - len(files)
    # back to the first dialect, with images where they are
    back = tmp_path / "back.jsonl"
    done = alignkd_here("data", "convert", out, "--images", images, "--out", back, "--json")
    assert read(back, images) == expected and json.loads(done.stdout)["images_referenced"] == 12
    again = tmp_path / "again.jsonl.gz"
    alignkd_here("data", "convert", path, *source, "--to", to, "--out", again, "--images-out", images)
    assert again.read_bytes() == out.read_bytes() and sorted(images.iterdir()) == files


def test_what_is_not_written_is_counted_and_listed(data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path) -> None:
    bad = [
        {**data.entries[0], "id": "missing", "image": "none.png"},
        {**data.entries[0], "id": "outside", "image": "../x.png"},
        {"id": "film", "video": "a.mp4", "conversations": data.entries[1]["conversations"], "source": "x"},
        {"id": "no mark", "image": "square.png", "conversations": data.entries[1]["conversations"], "source": "y"},
        ["no object"],
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, [*data.entries[:3], *bad])))
    out, images, listing = tmp_path / "out.jsonl", tmp_path / "out-images", tmp_path / "dropped.jsonl"
    command = (
        "data",
        "convert",
        path,
        "--images",
        data.images,
        "--images-out",
        images,
        "--out",
        out,
        "--list",
        listing,
    )
    shown = alignkd_here(*command)
    lines = shown.stdout.splitlines()
    assert shown.returncode == 0 and lines[0] == "3 of 8 samples written" and lines[-1] == f"wrote {listing}"
    assert "keys not read: source 2, video 1" in lines and sum(line.startswith("unusable: 1: ") for line in lines) == 5
    dropped = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [(one["id"], one["index"], one["kind"]) for one in dropped] == [
        ("missing", 3, "image_missing"),
        ("outside", 4, "image_outside"),
        ("film", 5, "malformed"),
        ("no mark", 6, "conversation"),
        ("#7", 7, "malformed"),
    ]
    assert is_listing(listing) and len(out.read_text().splitlines()) == 3
    # the listing is replaced, the data is not
    refused = alignkd_here(*command)
    assert refused.returncode == 1 and "--out" in refused.stderr and "already exists" in refused.stderr
    assert alignkd_here(*command, "--force").returncode == 0


def test_several_data_sets_become_one(data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path) -> None:
    table = data_formats.write(tmp_path / "data.parquet", data.entries[:4], data.images)
    rest = data_formats.write(tmp_path / "rest.jsonl", data.entries[4:], data.images)
    out, images = tmp_path / "out.jsonl", tmp_path / "images"
    done = alignkd_here("data", "convert", table, rest, "--images", data.images, "--out", out, "--images-out", images)
    assert done.returncode == 0 and read(out, images) == read(data.conversations, data.images)
    assert "keys not read: height 4" in done.stdout


def test_roles_and_system_prompts_of_the_user_are_written(alignkd_here: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    path.write_text(
        '{"id": 1, "messages": [{"role": "cat", "content": "miaow"}, {"role": "assistant", "content": "!"}]}'
    )
    assert (
        alignkd_here("data", "convert", path, "--out", out, "--role", "cat=human", "--system", "be brief").returncode
        == 0
    )
    assert json.loads(out.read_text()) == {
        "id": "1",
        "conversations": [
            {"from": "system", "value": "be brief"},
            {"from": "human", "value": "miaow"},
            {"from": "gpt", "value": "!"},
        ],
    }


def test_refusals_are_one_line_and_leave_nothing(data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    table = data_formats.write(work / "data.parquet", data.entries, data.images)
    lines = data_formats.write(work / "data.jsonl", data.entries, data.images)
    (work / "bad.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    (work / "else").mkdir()
    (work / "else" / "a.png").write_bytes(b"mine")
    before = sorted(work.rglob("*"))
    out = work / "out.jsonl"
    for arguments, said in (
        ((table, "--out", out), "data.parquet: holds images itself; give a folder to write them to by --images-out"),
        ((lines, "--out", out, "--images-out", work / "new"), "is a file; give the folder of the images by --images"),
        ((work / "bad.jsonl", "--out", out), "none of 2 samples is usable: no conversation among the keys ('id')"),
        ((lines, "--out", lines, "--force"), "is an input of the command"),
        ((work / "data.*l", "--out", lines, "--force"), "is an input of the command"),
        ((work / "none.jsonl", "--out", out), "none.jsonl: cannot be read"),
        ((table, "--out", out, "--images-out", work / "else"), "is not empty and was not made by this command"),
        ((lines, "--out", out, "--list", out), "is an input of the command"),
    ):
        refused = alignkd_here("data", "convert", *arguments)
        assert refused.returncode == 1 and said in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    assert sorted(work.rglob("*")) == before


def test_an_interruption_leaves_no_half_of_anything(
    data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = data_formats.write(tmp_path / "data.parquet", data.entries, data.images)
    out, images, listing = tmp_path / "out.jsonl", tmp_path / "images", tmp_path / "dropped.jsonl"
    command = ("data", "convert", table, "--out", out, "--images-out", images, "--list", listing)

    def interrupted(sample: Sample, *rest: Any) -> Any:
        if sample.index == 4:
            signal.raise_signal(signal.SIGINT)
        return written_entry(sample, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(alignkd.pipeline.data.convert.convert, "written_entry", interrupted)
        patch.setattr("alignkd.pipeline.console.interrupts._end_process", lambda: None)  # it is this process
        assert alignkd_here(*command).returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.parquet", "images"]
    whole = {(data.images / name).read_bytes() for name in tiny_data.IMAGES}
    assert {path.read_bytes() for path in images.iterdir()} < whole
    (images / ".part-1-0").write_bytes(b"of a process that was killed")
    assert alignkd_here(*command).returncode == 0
    assert read(out, images) == read(data.conversations, data.images)


@pytest.mark.parametrize(("limit", "named"), [(3000, "images"), (45_000, "out.jsonl")])
def test_a_full_disk_is_one_line_that_names_the_file(
    limit: int, named: str, data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path
) -> None:
    table = data_formats.write(tmp_path / "data.parquet", data.entries * 40, data.images)
    out, images = tmp_path / "out.jsonl", tmp_path / "images"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        done = alignkd_here("data", "convert", table, "--out", out, "--images-out", images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"alignkd: {tmp_path / named}") and "File too large; " in done.stderr
    assert not out.exists() and not list(tmp_path.rglob(".part-*"))


def test_the_gzipped_file_has_no_name_and_no_time(data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl.gz"
    assert alignkd_here("data", "convert", data.conversations, "--out", out).returncode == 0
    packed = out.read_bytes()
    assert packed[3] == 0 and packed[4:8] == bytes(4)
    assert len(gzip.decompress(packed).splitlines()) == len(data.entries)
