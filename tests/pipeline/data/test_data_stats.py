"""`alignkd data stats` against the dump itself, against counting by hand, and over faulty files."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

import alignkd.pipeline.data.stats.notes
import alignkd.pipeline.data.stats.scan
import alignkd.pipeline.data.stats.table
from alignkd.pipeline.cli import main
from alignkd.pipeline.data.stats.figures import SourceStats
from alignkd.pipeline.data.stats.histogram import make_histogram
from alignkd.pipeline.data.stats.report import report_lines
from alignkd.pipeline.data.stats.scan import MALFORMED_ENTRY, NO_FOLDER, TEXT_ONLY
from alignkd.pipeline.data.stats.stats import StatsJob, data_stats
from alignkd.pipeline.data.stats.summary import summarise
from alignkd.pipeline.data.stats.table import KINDS, SampleTable
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.retry import with_advice
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError

LONG_ANSWER = "and so on, " * 200


def entry(sample_id: str, image: str | None, question: str = "<image>\nhi", answer: str = "ho") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": sample_id, **({} if image is None else {"image": image}), "conversations": turns}


FAULTY: list[Any] = [
    entry("missing", "coco/none.jpg"),
    entry("cut", "coco/cut.jpg"),
    entry("cut again", "coco/cut.jpg"),
    entry("no image", "gqa/text.png"),
    entry("banner", "banner.png"),
    entry("outside", "../secret.png"),
    entry("no mark", "coco/rocket.jpg", "hi"),
    entry("speaker", "coco/rocket.jpg") | {"conversations": [{"from": "cat", "value": "<image> miaow"}]},
    entry("mask", "coco/rocket.jpg", answer="USER: so? ASSISTANT: so."),
    entry("missing and no mark", "gqa/none.jpg", "hi"),
    entry("cut and long", "coco/cut.jpg", answer=LONG_ANSWER),
    entry("missing and long", "gqa/none.jpg", answer=LONG_ANSWER),
    entry("long", "coco/rocket.jpg", answer=LONG_ANSWER),
    entry("long text", None, "hi", answer=LONG_ANSWER),
    entry("empty", "coco/rocket.jpg") | {"conversations": []},
    entry("two images", None) | {"image": ["coco/rocket.jpg", "coco/cut.jpg"]},
    ["no object"],
]
MakeJob = Callable[..., StatsJob]


@pytest.fixture
def make_job(golden: Path, golden_images: Path, tmp_path: Path) -> MakeJob:
    """`make_job(entries)`: statistics over the entries, with images in two folders, one cut and one no image."""
    images = tmp_path / "images"
    shutil.copytree(golden_images, images)
    shutil.copytree(golden_images, images / "coco")
    (images / "gqa").mkdir()
    (images / "coco" / "cut.jpg").write_bytes((golden_images / "rocket.jpg").read_bytes()[:30000])
    (images / "gqa" / "text.png").write_text("this is text")
    Image.new("1", (25_000, 2)).save(images / "banner.png")  # decodes, but not into a square of 625 million pixels

    def make(entries: list[Any], name: str = "data.json", **changes: Any) -> StatsJob:
        path = tmp_path / name
        path.write_text(json.dumps(entries) if name.endswith("json") else "\n".join(map(json.dumps, entries)))
        job = StatsJob(
            conversations=(path,),
            images=images,
            template="v1",
            max_tokens=(512, 2048),
            checkpoint=str(golden / "teacher"),
            vision_config=golden / "clip",
        )
        return replace(job, **changes)

    return make


@pytest.fixture
def golden_entries(golden: Path) -> list[Any]:
    return list(json.loads((golden / "v1.json").read_text()))


def read_listing(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_adds_up(source: SourceStats) -> None:
    dropped = (source.image_missing or 0) + source.label_mask + source.other
    assert source.usable + (source.image_broken or 0) + dropped == source.samples
    for limit in source.limits:
        assert limit.kept + limit.overlong + limit.image_broken + dropped == source.samples


def without_advice(reason: str) -> str:
    """A reason of the dump without the command that only a dump can be told to run."""
    return reason.removesuffix(with_advice(""))


def test_a_checkpoint_that_is_not_there_is_named_with_its_option(make_job: MakeJob, golden_entries: list[Any]) -> None:
    job = make_job(golden_entries, checkpoint="no/model", vision_config=None)
    with pytest.raises(InputError, match=r"^--checkpoint no/model: .*count the tokens: give the teacher's"):
        data_stats(job)


@pytest.mark.parametrize("beyond", [0, -1])
def test_figures_and_reasons_are_those_of_the_dump(
    make_job: MakeJob, golden_entries: list[Any], tmp_path: Path, beyond: int
) -> None:
    entries = golden_entries + FAULTY
    longest = data_stats(make_job(golden_entries)).total.max_tokens
    assert longest is not None
    limit = longest + beyond  # the longest golden sample just fits, or just does not
    job = make_job(entries, max_tokens=(limit,), listing=tmp_path / "dropped.jsonl")
    stats = data_stats(job)
    assert job.images is not None
    result = dump(
        DumpJob(
            data=(DataSet(path=job.conversations[0], images=job.images),),
            template="v1",
            max_tokens=limit,
            teacher=TeacherConfig(checkpoint=job.checkpoint, vision_config=job.vision_config),
            store=StoreConfig(path=tmp_path / "store"),
        )
    )
    assert stats.total.samples == result.num_samples == len(entries)
    assert stats.total.limits[0].kept == result.num_records == 4 + beyond
    listed = {line["index"]: line for line in read_listing(tmp_path / "dropped.jsonl")}
    assert stats.num_listed == len(listed) == len(result.quarantined)
    overlong = 0
    for index, sample_id, full_reason in result.quarantined:
        line, reason = listed[index], without_advice(full_reason)
        assert line["id"] == sample_id and line["file"] == str(job.conversations[0])
        if line["overlong_for"] and line["kind"] in {"overlong", "image_broken"}:
            # the dump never decodes the image of an overlong sample
            assert reason == f"{line['tokens']} tokens, more than max_tokens {limit}; dropped"
            overlong += 1
        if line["kind"] != "image_broken" or not line["overlong_for"]:
            assert line["reason"] == reason
    assert stats.total.limits[0].overlong == overlong == 3 - beyond
    assert_adds_up(stats.total)


def test_samples_with_several_images_are_judged_by_the_worst(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = "<image><image>\nhi"
    entries = [
        entry("good", None, both) | {"image": ["coco/rocket.jpg", "coffee.png"]},
        entry("first cut", None, both) | {"image": ["coco/cut.jpg", "coco/rocket.jpg"]},
        entry("second missing", None, both) | {"image": ["coco/cut.jpg", "coco/none.jpg"]},
        entry("second outside", None, both) | {"image": ["coco/cut.jpg", "../rocket.jpg"]},
        entry("three marks", None, both + "<image>") | {"image": ["coco/rocket.jpg", "coffee.png"]},
        entry("one", "coffee.png"),
        entry("list of one", None) | {"image": ["coffee.png"]},
        entry("none", None, "hi") | {"image": []},
    ]
    job = make_job(entries, listing=tmp_path / "dropped.jsonl", max_tokens=(2048,))
    stats = data_stats(job)
    # distinct paths: cut, none, outside, rocket, coffee
    assert (stats.num_images, stats.total.several_images, stats.total.text_only) == (5, 5, 1)
    assert (stats.total.image_missing, stats.total.image_broken, stats.total.other) == (1, 1, 2)
    assert stats.total.usable == 4 and "5 samples have several images" in list(report_lines(stats))
    assert_adds_up(stats.total)
    reasons = {line["id"]: line["reason"] for line in read_listing(tmp_path / "dropped.jsonl")}
    assert "image 1 of 2: broken image" in reasons["first cut"] and "none.jpg" in reasons["second missing"]
    assert "leaves the image folder" in reasons["second outside"]
    assert reasons["three marks"].startswith("3 <image> in the conversation but 2 images")
    result = dump(
        DumpJob(
            data=(DataSet(path=job.conversations[0], images=job.images),),
            template="v1",
            max_tokens=2048,
            teacher=TeacherConfig(checkpoint=job.checkpoint, vision_config=job.vision_config, sanity="off"),
            store=StoreConfig(path=tmp_path / "store"),
        )
    )
    assert {sample_id: without_advice(reason) for _, sample_id, reason in result.quarantined} == reasons
    assert len(stats.lengths) == 3 and stats.length_counts.sum() == 7  # text, one image, two; one has no usable text
    monkeypatch.setattr(alignkd.pipeline.data.stats.table, "TEXTS_PER_TASK", 2)
    monkeypatch.setattr(alignkd.pipeline.data.stats.table, "IMAGES_PER_TASK", 2)
    again = data_stats(job)
    assert replace(again, seconds=0.0).to_json() == replace(stats, seconds=0.0).to_json()


def test_every_fault_is_counted_where_it_belongs(make_job: MakeJob, golden_entries: list[Any]) -> None:
    stats = data_stats(make_job(golden_entries + FAULTY))
    sources = {source.source: source for source in stats.sources}
    assert sources.keys() == {"coco", "gqa", "..", NO_FOLDER, TEXT_ONLY, MALFORMED_ENTRY}
    assert [source.samples for source in stats.sources] == sorted((s.samples for s in stats.sources), reverse=True)
    found = {
        name: (
            source.samples,
            source.text_only,
            source.image_missing,
            source.image_broken,
            source.label_mask,
            source.other,
        )
        for name, source in sources.items()
    }
    assert found == {
        "coco": (10, 0, 1, 3, 1, 4),
        "gqa": (3, 0, 2, 1, 0, 0),
        "..": (1, 0, 0, 0, 0, 1),
        NO_FOLDER: (4, 0, 0, 1, 0, 0),
        TEXT_ONLY: (2, 2, 0, 0, 0, 0),
        MALFORMED_ENTRY: (1, 0, 0, 0, 0, 1),
    }
    for source in (*stats.sources, stats.total):
        assert_adds_up(source)
    for field in ("samples", "text_only", "image_missing", "image_broken", "label_mask", "other", "usable", "counted"):
        assert getattr(stats.total, field) == sum(getattr(source, field) for source in stats.sources)
    assert stats.num_unusable == len(FAULTY) - 2 and len(stats.unusable) == 10
    assert sources[NO_FOLDER].usable == 3 and stats.num_images == 10


def test_tokens_are_those_of_the_examples(make_job: MakeJob, golden: Path, golden_entries: list[Any]) -> None:
    from safetensors.numpy import load_file

    stored = [load_file(golden / f"{sample['id']}.safetensors")["input_ids"] for sample in golden_entries]
    lengths = [len(ids) + (143 if "image" in sample else 0) for ids, sample in zip(stored, golden_entries, strict=True)]
    total = data_stats(make_job(golden_entries)).total
    assert (total.mean_tokens, total.median_tokens, total.max_tokens, total.counted) == (
        np.mean(lengths),
        np.median(lengths),
        max(lengths),
        4,
    )


def test_images_may_be_only_opened_or_left_alone(make_job: MakeJob, golden_entries: list[Any]) -> None:
    entries = golden_entries + FAULTY
    decoded = data_stats(make_job(entries)).total
    opened = data_stats(make_job(entries, decode=False)).total
    assert opened.image_broken is None and opened.image_missing == decoded.image_missing == 3
    assert decoded.image_broken == 5 and opened.usable == decoded.usable + decoded.image_broken
    alone = data_stats(make_job(entries, images=None))
    assert alone.total.image_broken is None and alone.total.image_missing is None
    assert alone.total.usable == opened.usable + 2 + 1  # of the missing ones two have usable texts; and the one outside
    assert "not checked" in "\n".join(report_lines(alone))


def test_an_image_is_decoded_once_however_many_samples_show_it(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[int] = Counter()
    true_decode = alignkd.pipeline.data.stats.scan.decode_with_orientation

    def counting(image_bytes: bytes) -> tuple[Image.Image, int]:
        decoded[len(image_bytes)] += 1
        return true_decode(image_bytes)

    monkeypatch.setattr(alignkd.pipeline.data.stats.scan, "decode_with_orientation", counting)
    entries = [entry(str(number), "coco/cut.jpg" if number % 2 else "coco/chelsea.png") for number in range(60)]
    stats = data_stats(make_job(entries))
    # Reasons are found again for the samples that are shown.
    assert sorted(decoded.values()) == [1, 1 + len(stats.unusable)] and stats.num_images == 2
    assert (stats.total.image_broken, stats.total.usable) == (30, 30)


def test_keys_marks_and_orientations_are_counted(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make_job([])
    assert job.images is not None
    exif = Image.Exif()
    for orientation, name in ((1, "upright.jpg"), (6, "turned.jpg"), (8, "turned.png"), (6, "turned.tiff")):
        exif[ExifTags.Base.Orientation] = orientation
        Image.new("RGB", (30, 20), "red").save(job.images / name, exif=exif)
    weighed = [{"from": "human", "value": "How do I use <video> in HTML?", "lang": 0}, {"from": "gpt", "value": "ho"}]
    entries = [
        *(entry(name, name) | {"source": "x", "height": 20} for name in ("upright.jpg", "turned.jpg", "turned.png")),
        entry("turned.tiff", "turned.tiff"),
        entry("again", "turned.jpg") | {"source": "x"},
        {"id": "tag", "conversations": weighed},
        entry("film", None, "hi") | {"video": "a.mp4"},
    ]
    stats = data_stats(make_job(entries))
    assert stats.keys_not_read == {"source": 4, "height": 3, "conversations[].lang": 1, "video": 1}
    assert stats.marks == {"<video>": 1} and list(stats.text_reasons.values()) == [1]
    assert (stats.num_images, stats.num_turned, stats.num_unusable) == (4, 2, 1)
    lines = list(report_lines(stats))
    assert "keys not read: source 4, height 3, conversations[].lang 1, video 1" in lines
    assert "kept as plain text in samples without an image: <video> 1" in lines
    assert any(line.startswith("2 images have an EXIF orientation other than 1; they are read as") for line in lines)
    assert json.loads(json.dumps(stats.to_json()))["keys_not_read"]["source"] == 4
    assert data_stats(make_job(entries, decode=False)).num_turned is None
    monkeypatch.setattr(alignkd.pipeline.data.stats.notes, "MAX_NAMES", 2)
    assert data_stats(make_job(entries)).keys_not_read == {"source": 4, "height": 3, "(others)": 2}


def test_one_reason_for_every_unusable_sample_is_said_once(make_job: MakeJob) -> None:
    turns = [{"from": "cat", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    lines = list(report_lines(data_stats(make_job([{"conversations": turns}] * 20))))
    assert [line for line in lines if line.startswith("unusable")] == [
        "unusable: 20 samples, all for one reason: unknown role 'cat'; name it under data.roles as human, gpt or system"
    ]


def test_more_workers_and_more_files_give_the_same(
    make_job: MakeJob, golden_entries: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignkd.pipeline.data.stats.table, "TEXTS_PER_TASK", 16)  # else a small file is not shared out
    entries = [
        {**sample, "id": f"{number}", "image": f"part{number % 7}/x{number}.png"} if number % 4 == 0 else sample
        for number, sample in enumerate((golden_entries + FAULTY) * 8)
        if isinstance(sample, dict)
    ]
    whole = make_job(entries, listing=tmp_path / "whole.jsonl")
    one, several = data_stats(whole), data_stats(replace(whole, workers=3))
    assert several.to_json() | {"seconds": 0} == one.to_json() | {"seconds": 0}
    assert several.total.image_missing and several.total.image_broken and several.total.label_mask
    parts = [make_job(entries[:70], "first.json"), make_job(entries[70:], "second.jsonl")]
    files = tuple(part.conversations[0] for part in parts)
    split = data_stats(replace(whole, conversations=files, listing=tmp_path / "split.jsonl", workers=2))
    assert (split.sources, split.total, split.histogram) == (one.sources, one.total, one.histogram)
    lines = read_listing(tmp_path / "split.jsonl")
    for line, expected in zip(lines, read_listing(tmp_path / "whole.jsonl"), strict=True):
        file, first = ("first.json", 0) if expected["index"] < 70 else ("second.jsonl", 70)
        assert (Path(line["file"]).name, line["index"]) == (file, expected["index"] - first)
        assert (line["id"], line["reason"]) == (expected["id"], expected["reason"])


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=30
    ),
    limits=st.sets(st.integers(1, 9), max_size=3).map(sorted),
)
def test_figures_add_up_and_equal_counting_by_hand(rows: list[tuple[int, int, int, int]], limits: list[int]) -> None:
    rows = [
        (text, tokens if text == 0 else 0, 0 if text == 1 else image, source) for text, tokens, image, source in rows
    ]
    columns = np.array(rows).T
    table = SampleTable(
        text_states=columns[0].astype(np.uint8),
        tokens=columns[1].astype(np.int32),
        image_states=columns[2].astype(np.uint8),
        images_of=(columns[2] > 0).astype(np.int32),
        sources=("a", "b", "c"),
        source_of=columns[3].astype(np.int32),
        num_images=0,
    )
    total, sources, (whole,) = summarise(table, [len(rows)], limits, "decoded")
    assert replace(whole, source=total.source) == total

    def fate(text: int, tokens: int, image: int, limit: int) -> str:
        if text == 1:
            return "malformed"
        if image in (2, 3):
            return ("image_missing", "image_outside")[image - 2]
        if text:
            return ("conversation", "label_mask")[text - 2]
        if tokens > limit:
            return "overlong"
        return "image_broken" if image == 4 else "kept"

    for name, found in (("total", total), *((source.source, source) for source in sources)):
        assert_adds_up(found)
        mine = [row for row in rows if name == "total" or "abc"[row[3]] == name]
        assert found.samples == len(mine)
        for limit in found.limits:
            fates = Counter(fate(*row[:3], limit.max_tokens) for row in mine)
            assert set(fates) <= set(KINDS)
            assert (limit.kept, limit.overlong, limit.image_broken) == (
                fates["kept"],
                fates["overlong"],
                fates["image_broken"],
            )
        assert found.max_tokens == max((row[1] for row in mine if row[0] == 0), default=None)


@settings(max_examples=200)
@given(
    lengths=st.dictionaries(st.integers(1, 5000), st.integers(1, 9), min_size=1),
    limits=st.sets(st.integers(1, 3000), max_size=3).map(sorted),
)
def test_no_bin_lies_on_both_sides_of_a_limit(lengths: dict[int, int], limits: list[int]) -> None:
    values = np.array(sorted(lengths))
    counts = np.array([lengths[length] for length in values])
    histogram = make_histogram(values, counts, limits)
    edges = histogram.edges
    assert list(edges) == sorted(set(edges)) and edges[0] == 0 and len(edges) <= 20 + len(limits)
    for low, high, count in zip(edges[:-1], edges[1:], histogram.counts, strict=True):
        assert count == sum(number for length, number in lengths.items() if low < length <= high)
        assert not any(low < limit < high for limit in limits) or low < limit_beyond_data(limits, values[-1]) < high
    assert sum(histogram.counts) == sum(lengths.values())


def limit_beyond_data(limits: list[int], longest: int) -> float:
    """The first limit that no sample exceeds; no bin needs to end there."""
    return next((limit for limit in limits if limit >= longest), float("inf"))


def run_stats(job: StatsJob, *arguments: object) -> Result:
    fixed = ["--images", job.images, "--checkpoint", job.checkpoint, "--vision-config", job.vision_config]
    files = [*map(str, job.conversations), *map(str, fixed)]
    return CliRunner().invoke(main, ["data", "stats", *files, "--workers", "1", *map(str, arguments)])


def test_the_command_reports_to_people_and_scripts(
    make_job: MakeJob, golden_entries: list[Any], tmp_path: Path
) -> None:
    job = make_job(golden_entries + FAULTY)
    png, listing = tmp_path / "deep" / "lengths.png", tmp_path / "deep" / "dropped.jsonl"
    shown = run_stats(job, "--max-tokens", "512,330,512", "--png", png, "--list", listing)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].split()[-8:] == [">", "330", "kept", "330", ">", "512", "kept", "512"]
    total = next(line.split() for line in lines if line.startswith("total"))
    assert total[1] == "21" and "max_tokens 330" in shown.stdout
    assert "1 sample with a damaged image is also longer than 512, and in both columns" in shown.stdout
    assert f"unusable: {job.conversations[0]}: sample 'missing' (index 4): " in shown.stdout
    assert "unusable: 5 more" in shown.stdout
    assert Image.open(png).format == "PNG" and len(read_listing(listing)) == len(FAULTY) + 1

    report = json.loads(run_stats(job, "--max-tokens", "330", "--json").stdout)
    assert [limit["max_tokens"] for limit in report["total"]["limits"]] == [330]
    assert report["total"]["samples"] == 21 and report["seconds"] > 0
    assert sum(report["histogram"]["counts"]) == report["total"]["counted"]
    assert {source["source"] for source in report["sources"]} >= {"coco", "gqa"}
    assert report["unusable"][0]["kind"] == "image_missing" and report["num_unusable"] == 15


def test_no_weights_are_needed_and_empty_data_is_reported(make_job: MakeJob, golden: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(golden / "teacher" / name, checkpoint)
    empty = run_stats(make_job([], checkpoint=str(checkpoint)), "--png", tmp_path / "none.png")
    assert empty.exit_code == 0 and "no sample has tokens" in empty.stdout, empty.output


@pytest.mark.parametrize(
    ("text", "message"), [(None, "data.json: cannot be read"), ('[{"id": 1,}]', "broken JSON at line 1, column 11")]
)
def test_an_unreadable_file_is_one_line(make_job: MakeJob, text: str | None, message: str) -> None:
    job = make_job([])
    job.conversations[0].unlink() if text is None else job.conversations[0].write_text(text)
    failed = run_stats(job)
    assert failed.exit_code == 1 and message in failed.stderr and failed.stderr.count("\n") == 1


def test_wrong_folders_and_limits_are_named(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job([])
    assert "no such image folder" in run_stats(replace(job, images=tmp_path / "none")).stderr
    for limits in ("0", "512,", "many", "-3"):
        failed = run_stats(job, "--max-tokens", limits)
        assert failed.exit_code == 2 and "expected whole numbers above 0" in failed.stderr


def test_small_sources_beyond_the_table_are_counted(make_job: MakeJob) -> None:
    stats = data_stats(make_job([entry(str(number), f"f{number:03}/a.png") for number in range(40)], images=None))
    text = "\n".join(report_lines(stats))
    assert "(10 more sources with 10 samples, see --json)" in text and len(stats.sources) == 40


def test_a_wrong_path_is_reported_before_the_checkpoint_is_looked_for(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["data", "stats", str(tmp_path / "gone"), "--checkpoint", str(tmp_path / "none")])
    assert found.exit_code == 1 and "gone: cannot be read" in found.output and "none" not in found.output
