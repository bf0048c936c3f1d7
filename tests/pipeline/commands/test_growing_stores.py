"""`alignkd dump` over lists of data sets, and with a list that has grown: a store that grows has the records of a dump
of the whole list in one go."""

import base64
import itertools
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkd.storage.write.grow
import alignkd.storage.write.publish
from alignkd.storage import StoreError, StoreReader, open_writer, verify_store
from alignkd.storage.places import load_manifest
from alignkd.storage.schema.sources import Addition, StoredPiece, StoredSource
from alignkd.storage.tools.gc import collect_garbage
from alignkd.vlm.data.data_list import ListedSource

Alignkd = Callable[..., Any]
Entry = dict[str, Any]
NOTHING = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "topk", "top_k": 3}}


class Data:
    """Data files made of the golden samples, and configurations over them."""

    def __init__(self, folder: Path, golden: Path, write_config: Callable[..., Path]) -> None:
        self.folder, self._write_config = folder, write_config
        self._golden: list[Entry] = json.loads((golden / "v1.json").read_text())
        self.images = golden.parent / "images"

    def entries(self, numbers: Sequence[int]) -> list[Entry]:
        """Entries that differ in their texts."""
        made = []
        for number in numbers:
            entry = json.loads(json.dumps(self._golden[number % len(self._golden)]))
            entry["id"] = f"sample {number}"
            entry["conversations"][1]["value"] += f" {number}"
            made.append(entry)
        return made

    def write(self, name: str, numbers: Sequence[int]) -> Path:
        path, entries = self.folder / name, self.entries(numbers)
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(entries, indent=1))
        return path

    def config(self, data: Any, store: str | Path = "store", **settings: Any) -> Path:
        """A configuration; `data` are paths or sections."""
        path = self._write_config("run.yaml", ("student", "train"), teacher={"sanity": "off", "batch": 1})
        sections = yaml.safe_load(path.read_text())
        place = store if "://" in str(store) else str(self.folder / store)
        sections["store"] = {"path": place, "shard_size": 2, **NOTHING, **settings}
        whole = [
            {"images": str(self.images), **(one if isinstance(one, dict) else {"conversations": str(one)})}
            for one in (data if isinstance(data, list) else [data])
        ]
        sections["data"] = whole if isinstance(data, list) else whole[0]
        path.write_text(yaml.safe_dump(sections))
        return path


@pytest.fixture
def data(tmp_path: Path, golden: Path, write_config: Callable[..., Path]) -> Data:
    return Data(tmp_path, golden, write_config)


def dumped(run: Alignkd, config: Path, code: int = 0) -> str:
    """The output of a dump, all on stderr and stdout."""
    done = run("dump", config)
    assert done.returncode == code, done.stderr
    return str(done.stdout + done.stderr)


def indices(path: Path | str) -> list[int]:
    return sorted(int(index) for index in StoreReader(path).dataset_index)


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_store_that_grew_three_times_equals_a_dump_in_one_go(
    alignkd_here: Alignkd, data: Data, tmp_path: Path, backend: str
) -> None:
    first, more = data.write("train.json", range(3)), tmp_path / "more.jsonl"
    store = tmp_path / "store"
    assert "3 of 3 samples in the store" in dumped(alignkd_here, data.config(first, backend=backend))
    assert "sources" not in json.loads((store / "manifest.json").read_text())
    data.write("train.json", range(5))
    assert "2 samples added to 3" in dumped(alignkd_here, data.config(first, backend=backend))
    data.write("more.jsonl", range(5, 7))
    config = data.config([first, more], backend=backend)
    assert "2 samples added to 5" in dumped(alignkd_here, config)
    data.write("more.jsonl", range(5, 8))
    assert "1 sample added to 7" in dumped(alignkd_here, config)
    assert "nothing left to do" in dumped(alignkd_here, config)

    dumped(alignkd_here, data.config([first, more], "whole", backend=backend))
    diff = alignkd_here("shards", "diff", store, tmp_path / "whole")
    assert diff.returncode == 0 and "equal: 8 records in both" in diff.stdout, diff.stdout
    assert "additions.1" in diff.stdout and "num_samples" not in diff.stdout  # both have 8
    reader, whole = StoreReader(store), StoreReader(tmp_path / "whole")
    assert indices(store) == indices(tmp_path / "whole") == list(range(8))
    assert reader.sources == whole.sources == ["train", "more"]
    assert reader.source_of.tolist() == [int(index >= 5) for index in reader.dataset_index]
    assert reader.manifest.num_samples == 8 and reader.manifest.num_shards == 2 + 1 + 1 + 1

    assert alignkd_here("shards", "verify", store, "--deep").returncode == 0
    listed = alignkd_here("shards", "ls", store)
    assert "data set train: 5 samples of 1 file\n" in listed.stdout and listed.stdout.count("\nadded 20") == 3
    shown = json.loads(alignkd_here("shards", "ls", store, "--json").stdout)
    assert [one["samples"] for one in shown["sources"]] == [5, 3] and len(shown["additions"]) == 3
    assert "8 of 8 samples, 5 of 5 shards" in alignkd_here("dump", "--status", store).stdout
    assert json.loads(alignkd_here("shards", "stats", store, "--json").stdout)["records"] == 8
    assert collect_garbage(store) == []

    other = {"zarr": "webdataset", "webdataset": "zarr"}[backend]
    assert alignkd_here("shards", "convert", store, tmp_path / "other", "--backend", other).returncode == 0
    assert verify_store(tmp_path / "other", deep=True).ok
    back = alignkd_here("shards", "convert", tmp_path / "other", tmp_path / "back", "--backend", backend)
    assert back.returncode == 0 and StoreReader(tmp_path / "back").root_hash() == reader.root_hash()
    data.write("else.json", range(20, 22))
    dumped(alignkd_here, data.config(tmp_path / "else.json", "else", backend=backend))
    merged = tmp_path / "merged"
    assert alignkd_here("shards", "merge", store, tmp_path / "else", merged).returncode == 0
    found = StoreReader(merged)
    assert found.sources == ["train", "more", "else"] and found.manifest.additions is None
    assert [found.source_of.tolist().count(number) for number in range(3)] == [5, 3, 2]


def test_other_data_are_refused_in_one_line(alignkd_here: Alignkd, data: Data, tmp_path: Path) -> None:
    a, b = data.write("a.json", range(3)), data.write("b.json", range(3, 6))
    dumped(alignkd_here, data.config([a, b]))
    before = (tmp_path / "store" / "manifest.json").read_bytes()
    c = data.write("c.json", range(6, 8))
    cases = {
        "a.json of data set 'a' has 3 samples with sha256": [b, a],
        "data set 'b' with 3 samples is not in the list": [a],
        "data set 'b' was taken with share 1.0, now 0.5": [a, {"conversations": str(b), "share": 0.5}],
        "was read with system none, now": [a, {"conversations": str(b), "system": "Be brief."}],
        "is named 'a', which the store has": [
            {"conversations": str(a), "name": "z"}, b, {"conversations": str(c), "name": "a"}
        ],
        "b.json of data set 'b' has 3 samples": [a, c, b],
    }  # fmt: skip
    for problem, given in cases.items():
        output = dumped(alignkd_here, data.config(given), code=1)
        assert problem in output and output.count("\n") == 1 and "choose another path" in output, output
    data.write("a.json", range(4))  # not the last one
    output = dumped(alignkd_here, data.config([a, b, c]), code=1)
    assert "has 3 samples with sha256" in output and "a.json has 4 with" in output
    assert (tmp_path / "store" / "manifest.json").read_bytes() == before


def test_a_killed_addition_and_an_unfinished_store_go_on(
    alignkd_here: Alignkd, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, store = data.write("a.json", range(4)), data.write("b.json", range(4, 8)), tmp_path / "store"
    dumped(alignkd_here, data.config(a))
    (store / "commits" / "00000001.json").unlink()  # as if killed before its second shard
    for module, step, added in (
        (alignkd.storage.write.grow, "replace_durably", False),
        (alignkd.storage.write.publish, "create_exclusively", True),
    ):
        child = os.fork()
        if not child:
            monkeypatch.setattr(module, step, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
            alignkd_here("dump", data.config([a, b]))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert (load_manifest(store).additions is not None) == added
        assert len(StoreReader(store, allow_incomplete=True)) == 2
    assert "4 of 8 samples" not in dumped(alignkd_here, data.config([a, b]))
    dumped(alignkd_here, data.config([a, b], "whole"))
    assert alignkd_here("shards", "diff", store, tmp_path / "whole").returncode == 0
    assert verify_store(store, deep=True).ok and indices(store) == list(range(8))


def test_a_shard_of_an_addition_belongs_to_its_list_only(alignkd_here: Alignkd, data: Data, tmp_path: Path) -> None:
    a, b, c = data.write("a.json", range(2)), data.write("b.json", range(2, 4)), data.write("c.json", range(4, 6))
    dumped(alignkd_here, data.config(a))
    shutil.copytree(tmp_path / "store", tmp_path / "twin")
    dumped(alignkd_here, data.config([a, b]))
    dumped(alignkd_here, data.config([a, c], "twin"))
    shutil.rmtree(tmp_path / "twin" / "shards" / "00000001")
    shutil.copytree(tmp_path / "store" / "shards" / "00000001", tmp_path / "twin" / "shards" / "00000001")
    shutil.copy(tmp_path / "store" / "commits" / "00000001.json", tmp_path / "twin" / "commits")
    problems = verify_store(tmp_path / "twin").problems
    assert len(problems) == 1 and "was committed for manifest" in problems[0].message


def test_reading_in_order_gives_shards_of_consecutive_samples(
    alignkd_here: Alignkd, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ListedSource, "is_sequential", True)
    a, store = data.write("a.json", range(5)), tmp_path / "store"
    dumped(alignkd_here, data.config([a]))
    data.write("a.json", range(8))
    dumped(alignkd_here, data.config([a]))
    reader = StoreReader(store)
    assert load_manifest(store).contiguous and load_manifest(store).additions[0].contiguous  # type: ignore[index]
    ends = [0, 2, 4, 5, 7, 8]
    of_shards = [reader.dataset_index[start:stop].tolist() for start, stop in itertools.pairwise(ends)]
    assert all(shard == list(range(shard[0], shard[0] + len(shard))) for shard in of_shards)
    assert of_shards[2] == [4] and of_shards[4] == [7] and verify_store(store, deep=True).ok


def test_files_with_images_are_embedded(
    alignkd_here: Alignkd, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = data.write("a.json", range(2))
    monkeypatch.setattr(ListedSource, "holds_images", True)
    output = dumped(alignkd_here, data.config(a, inputs="reference"), code=1)
    assert "set store.inputs to embed" in output and output.count("\n") == 1 and not (tmp_path / "store").exists()
    dumped(alignkd_here, data.config(a))
    assert load_manifest(tmp_path / "store").inputs == "embed"


def test_an_image_that_the_store_would_not_keep_never_fails_only_in_training(
    alignkd_here: Alignkd, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found at the start, or the sample is unusable; a store that exists keeps its own `inputs`."""
    a = data.write("a.json", range(3))
    entries = json.loads(a.read_text())
    picture = (data.images / entries[0]["image"]).read_bytes()
    held = {**entries[0], "id": "held", "image": base64.b64encode(picture).decode()}
    dumped(alignkd_here, data.config(a))  # no image inside: reference
    a.write_text(json.dumps([*entries, held], indent=1))
    output = dumped(alignkd_here, data.config(a), code=1)
    assert "only refers to image files (inputs: reference); choose another path" in output and output.count("\n") == 1
    dumped(alignkd_here, data.config(a, "embedded"))
    assert load_manifest(tmp_path / "embedded").inputs == "embed"

    monkeypatch.setattr(ListedSource, "holds_images", False)  # as if the look had missed it
    assert "nothing left to do" in dumped(alignkd_here, data.config(a, "embedded"))
    for store, given in (("store", {}), ("other", {"inputs": "reference"})):
        assert "1 unusable" in dumped(alignkd_here, data.config(a, store, **given))
        reader = StoreReader(tmp_path / store)
        assert [(one.id, len(reader)) for one in reader.quarantined] == [("held", 3)]
        assert "the data file holds an image of the sample, but the store only refers" in reader.quarantined[0].reason


def test_a_share_of_a_growing_data_set_keeps_what_it_took(alignkd_here: Alignkd, data: Data, tmp_path: Path) -> None:
    a, b = data.write("a.json", range(3)), data.write("b.json", range(10, 16))
    part = {"conversations": str(b), "share": 0.5, "name": "half"}
    dumped(alignkd_here, data.config([a, part]))
    first = len(StoreReader(tmp_path / "store")) - 3
    assert 0 < first < 6
    data.write("b.json", range(10, 22))
    dumped(alignkd_here, data.config([a, part]))
    dumped(alignkd_here, data.config([a, part], "whole"))
    assert alignkd_here("shards", "diff", tmp_path / "store", tmp_path / "whole").returncode == 0
    reader = StoreReader(tmp_path / "store")
    assert first < len(reader) - 3 < 12 and reader.sources == ["a", "half"]
    assert "share 0.5" in alignkd_here("shards", "ls", tmp_path / "store").stdout


def test_a_bucket_grows_and_two_that_grow_it_agree(
    alignkd_here: Alignkd, data: Data, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = data.write("a.json", range(2)), data.write("b.json", range(2, 4))
    dumped(alignkd_here, data.config(a, bucket.url))
    before = load_manifest(bucket.url)
    assert "2 samples added to 2" in dumped(alignkd_here, data.config([a, b], bucket.url))
    after = load_manifest(bucket.url)
    assert verify_store(bucket.url, deep=True).ok and indices(bucket.url) == list(range(4))
    assert after.additions is not None
    later = after.additions[0].model_copy(update={"added": "2031-01-01T00:00:00Z"})
    assert open_writer(bucket.url, before.changed(additions=[later])).manifest == after
    with pytest.raises(StoreError, match="another process has added other data"):
        open_writer(bucket.url, before.changed(additions=[_addition(2)]))

    # another process grows the store between reading and writing the manifest
    import alignkd.storage.write.bucket as place

    tags = iter([f'"{32 * "1"}"'])
    real = place.etag
    monkeypatch.setattr(place, "etag", lambda *arguments: next(tags, None) or real(*arguments))
    grown = open_writer(bucket.url, after.changed(additions=[*after.additions, _addition(3)])).manifest
    assert grown == load_manifest(bucket.url) and grown.num_samples == 7


def test_two_that_grow_a_folder_at_once_agree_or_one_is_refused(
    alignkd_here: Alignkd, data: Data, tmp_path: Path
) -> None:
    a, store = data.write("a.json", range(2)), tmp_path / "store"
    dumped(alignkd_here, data.config(a))
    manifest = load_manifest(store)
    children = []
    for number in (3, 3, 4, 4):
        child = os.fork()
        if not child:
            try:
                open_writer(store, manifest.changed(additions=[_addition(number)]))
            except StoreError as error:
                os._exit(1 if "\n" not in str(error) else 2)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert load_manifest(store).num_samples == (5 if codes[0] == 0 else 6)


def test_a_store_from_before_is_resumed_and_grows(
    alignkd_here: Alignkd, data: Data, golden: Path, tmp_path: Path
) -> None:
    with tarfile.open(golden.parents[1] / "storage" / "data" / "schema3" / "stores.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    store, path = tmp_path / "unfinished", tmp_path / "v1.json"
    before = (store / "manifest.json").read_bytes()
    entries = json.loads((golden / "v1.json").read_text())
    path.write_bytes((golden / "v1.json").read_bytes())
    assert "wrote 1 shard: 4 of 4 samples" in dumped(alignkd_here, data.config(path, store))
    assert (store / "manifest.json").read_bytes() == before and verify_store(store, deep=True).ok
    path.write_text(json.dumps([*entries, *data.entries([9])]))  # spelled otherwise: not the bytes of the old file
    assert "v1.json of data set 'v1' has 4 samples" in dumped(alignkd_here, data.config(path, store), code=1)
    text = (golden / "v1.json").read_text()
    path.write_text(f"{text[: text.rindex(']')].rstrip()}, {json.dumps(data.entries([9])[0])}]")
    assert "1 sample added to 4" in dumped(alignkd_here, data.config(path, store))
    assert verify_store(store, deep=True).ok and StoreReader(store).sources == ["v1"]


def _addition(num_samples: int) -> Addition:
    piece = StoredPiece(name="x.json", num_samples=num_samples, sha256="5" * 64)
    source = StoredSource(name="x", num_samples=num_samples, pieces=(piece,))
    return Addition(added="2030-01-01T00:00:00Z", sources=(source,), num_samples=num_samples)
