"""`alignkd data stats` and `show` over files of every format."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import data_formats
import pytest
import tiny_data
import tiny_families

import alignkd.pipeline.data.stats.table
from alignkd.pipeline.data.stats.scan import Scan
from alignkd.pipeline.data.stats.stats import StatsJob, data_stats
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tiny_data.TinyData:
    broken = {**tiny_data.ENTRIES[0], "id": "broken", "image": "broken.png"}
    written = tiny_data.write(tmp_path_factory.mktemp("data"), [*tiny_data.ENTRIES, broken])
    (written.images / "broken.png").write_bytes((written.images / "square.png").read_bytes()[:99])
    return written


@pytest.fixture
def model(golden: Path) -> tuple[object, ...]:
    return ("--checkpoint", golden / "teacher", "--vision-config", golden / "clip")


@pytest.fixture(scope="module")
def stats_of_json(data: tiny_data.TinyData, golden: Path, alignkd_here: Run) -> dict[str, Any]:
    model = ("--checkpoint", golden / "teacher", "--vision-config", golden / "clip", "--workers", 1)
    done = alignkd_here("data", "stats", data.conversations, "--images", data.images, *model, "--json")
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.parquet", "data.tar"])
def test_stats_are_those_of_the_json_file(
    name: str,
    data: tiny_data.TinyData,
    stats_of_json: dict[str, Any],
    model: tuple[object, ...],
    alignkd_here: Run,
    tmp_path: Path,
) -> None:
    path = data_formats.write(tmp_path / name, data.entries, data.images)
    images = () if name in data_formats.HOLD_IMAGES else ("--images", data.images)
    done = alignkd_here("data", "stats", path, *images, *model, "--workers", 1, "--json")
    found = json.loads(done.stdout)
    same = ("sources", "total", "num_images", "num_turned", "images_checked", "histogram", "num_unusable")
    assert {key: found[key] for key in same} == {key: stats_of_json[key] for key in same}
    assert [dropped["reason"] for dropped in found["unusable"]] == [
        dropped["reason"] for dropped in stats_of_json["unusable"]
    ]
    assert found["total"]["image_broken"] == 1 and found["images_checked"] == "decoded"
    assert [(file["file"], file["samples"]) for file in found["files"]] == [(str(path), len(data.entries))]
    assert found["keys_not_read"] == ({"height": 11} if name.endswith("parquet") else {})


def test_several_data_sets_have_figures_of_their_own(
    data: tiny_data.TinyData, model: tuple[object, ...], alignkd_here: Run, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, entries in enumerate((data.entries[:4], data.entries[4:5])):
        data_formats.write(parts / f"{number}.tar", entries, data.images)
    table = data_formats.write(tmp_path / "data.parquet", data.entries[5:8], data.images)
    done = alignkd_here("data", "stats", parts, table, *model, "--workers", 1, "--json")
    found = json.loads(done.stdout)
    assert [(figures["source"], figures["samples"]) for figures in found["data_sets"]] == [
        (str(parts), 5),
        (str(table), 3),
    ]
    assert [file["samples"] for file in found["files"]] == [4, 1, 3] and found["total"]["samples"] == 8
    shown = alignkd_here("data", "stats", parts, table, *model, "--workers", 1).stdout.splitlines()
    start = next(number for number, line in enumerate(shown) if line.startswith("data set"))
    assert [line.split()[:2] for line in shown[start + 1 : start + 3]] == [[str(parts), "5"], [str(table), "3"]]


def test_processes_share_out_whole_row_groups(
    data: tiny_data.TinyData, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignkd.pipeline.data.stats.table, "TEXTS_PER_TASK", 2)
    table = data_formats.write(tmp_path / "data.parquet", data.entries, data.images)
    job = StatsJob(
        conversations=(data.conversations, table),
        images=data.images,
        checkpoint=str(golden / "teacher"),
        vision_config=golden / "clip",
    )
    one = data_stats(job).to_json() | {"seconds": 0}
    monkeypatch.setattr(alignkd.pipeline.data.stats.table, "IMAGES_PER_TASK", 1)
    several = data_stats(StatsJob(**{**vars(job), "workers": 2})).to_json() | {"seconds": 0}
    assert several == one and one["num_images"] == 14  # a file and an image in a table are two
    sources = tuple(open_data(DataSet(path=path)) for path in job.conversations)
    scan = Scan(sources=sources, builder=None, decode=True)  # type: ignore[arg-type]
    ranges = [(numbers.start, numbers.stop) for numbers in scan.ranges(4)]
    assert ranges == [(0, 4), (4, 8), (8, 11), (11, 17), (17, 22)]  # row groups of 3, 3, 3 and 2


def test_sizes_of_images_in_data_files_count_tokens(
    data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path
) -> None:
    checkpoint = tiny_families.build("qwen3_vl", tmp_path / "model")
    arguments = ("--checkpoint", checkpoint, "--workers", 1, "--json")
    entries = data.entries[:3]
    by_file = alignkd_here(
        "data",
        "stats",
        data_formats.write(tmp_path / "data.json", entries, data.images),
        "--images",
        data.images,
        *arguments,
    )
    table = data_formats.write(tmp_path / "data.parquet", entries, data.images)
    by_table = alignkd_here("data", "stats", table, *arguments)
    assert json.loads(by_table.stdout)["total"] == json.loads(by_file.stdout)["total"]
    refused = alignkd_here("data", "stats", tmp_path / "data.json", *arguments)
    assert refused.returncode == 1 and "no size can be read for 2 samples; give the folder" in refused.stderr


def test_a_sample_is_shown_with_its_place_images_and_prompt(
    data: tiny_data.TinyData, model: tuple[object, ...], alignkd_here: Run, tmp_path: Path
) -> None:
    path = data_formats.write(tmp_path / "data.parquet", data.entries, data.images)
    lines = alignkd_here("data", "show", path, "--index", 4, *model).stdout.splitlines()
    assert lines[:3] == [
        f"{path}: row 4 (row 1 of row group 1)",
        f"sample 'tall;id=5' (index 4 of {path})",
        f"image 1: tall.jpg, in the data file, {(data.images / 'tall.jpg').stat().st_size / 1024:.1f} KiB, jpg, "
        "44 x 130 pixels",
    ]
    assert lines[3:7] == ["turn 0, human:", "  <image>", "  How many birds?", "turn 1, gpt:"]
    prompt = "\n".join(lines)
    assert "[144 vision tokens]" in prompt and prompt.count(">>> ") == 3 and "ok ASSISTANT:>>> good</s><<<" in prompt
    found = json.loads(alignkd_here("data", "show", path, "--id", "tall;id=5", *model, "--json").stdout)
    counts = found["tokens"]
    assert (found["index"], counts["vision"]) == (4, 144) and found["keys_not_read"] == []
    assert counts["total"] == counts["text"] + counts["vision"] == int(lines[-1].split()[0])
    supervised = "".join(piece["text"] for piece in found["pieces"] if piece["supervised"])
    assert supervised.replace("</s>", "|").split("|")[:3] == [" two birds.", " I counted: 1, 2.", " good"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("data.json", "line {line}"),
        ("data.jsonl.gz", "line 11"),
        ("data.parquet", "row 10 (row 1 of row group 3)"),
        ("data.tar", "members part/0010.json, part/0010.0.png"),
    ],
)
def test_the_problem_of_an_unusable_sample_is_shown(
    name: str, place: str, data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path
) -> None:
    path = data_formats.write(tmp_path / name, data.entries, data.images)
    done = alignkd_here("data", "show", path, "--index", 10, "--images", data.images)
    line = path.read_bytes().partition(b'"id": "broken"')[0].count(b"\n")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[1] == f"sample 'broken' (index 10 of {path})"
    if "tar" not in name:
        assert lines[0] == f"{path}: {place.format(line=line)}"
    else:
        assert set(lines[0].removeprefix(f"{path}: members ").split(", ")) == {"part/0010.json", "part/0010.0.png"}
    assert lines[2].startswith("unusable: broken.png: broken image (") and lines[3].endswith("99 B, png, unusable")


def test_a_conversation_that_cannot_be_used_is_shown_as_far_as_it_can(alignkd_here: Run, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"messages": [{"role": "cat", "content": "miaow"}, {"role": "dog", "content": "wuff", "x": 1}]}')
    refused = alignkd_here("data", "show", path, "--role", "cat=human")
    assert refused.returncode == 0 and "unusable: unknown role 'dog'; name it under data.roles" in refused.stdout
    shown = alignkd_here("data", "show", path, "--role", "cat=human", "--role", "dog=gpt", "--system", "be brief")
    assert shown.stdout.splitlines()[2:] == [
        "keys not read: messages[].x",
        *("turn 0, system:", "  be brief", "turn 1, human:", "  miaow", "turn 2, gpt:", "  wuff"),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--index", 11), 1, "data.json: no sample 11; it has 11, counted from 0"),
        (("--id", "nobody"), 1, "data.json: none of 11 samples has the id 'nobody'; give --index"),
        (("--id", "x", "--index", 1), 2, "--index and --id both name a sample; give one of them"),
        (("--role", "cat"), 2, "'cat', expected NAME=human, NAME=gpt or NAME=system"),
        (("--role", "cat=dog"), 2, "'cat=dog', expected NAME=human"),
        (("--images", "nowhere"), 1, "no such image folder"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    arguments: tuple[object, ...], code: int, said: str, data: tiny_data.TinyData, alignkd_here: Run, tmp_path: Path
) -> None:
    path = data_formats.write(tmp_path / "data.json", data.entries, data.images)
    done = alignkd_here("data", "show", path, *arguments)
    assert done.returncode == code and said in done.stderr
    assert code == 2 or done.stderr.count("\n") == 1
