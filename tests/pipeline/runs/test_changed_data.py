"""`alignkd train` names a data file that is not the one its store was made from, and trains on the store."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import alignkd.pipeline.runs.changed_data
import alignkd.pipeline.runs.student.train
from alignkd.pipeline.cli import main
from alignkd.pipeline.runs.changed_data import changed_data_notice
from alignkd.storage import Codecs, LogitsCodec, Manifest, Shapes, open_writer
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError

MakeStore = Callable[..., Path]
DATA = '[{"id": "a"}]'


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """`make_store(**data_fingerprint)`: a store that holds a manifest and nothing else."""

    def make(**data_fingerprint: str) -> Path:
        manifest = Manifest(
            fingerprint={"tokenizer": "t"},
            data_fingerprint=data_fingerprint,
            shapes=Shapes(num_heads=1, hidden_size=2, vision_tokens=3, vocab_size=4, vision_top_tokens=1),
            codecs=Codecs(
                attention="float16", vision_top="float16", vision_all="float16", logits=LogitsCodec(kind="full")
            ),
            num_samples=1,
            shard_size=1,
            seed=0,
        )
        open_writer(tmp_path / "store", manifest)
        return tmp_path / "store"

    return make


def test_only_another_file_is_named(make_store: MakeStore, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(DATA)
    store = make_store(conversations=hashlib.sha256(DATA.encode()).hexdigest())
    assert changed_data_notice([DataSet(path=data)], store) is None
    data.write_text(DATA.replace("a", "b"))
    notice = changed_data_notice([DataSet(path=data)], store)
    assert notice is not None and "\n" not in notice
    assert hashlib.sha256(data.read_bytes()).hexdigest()[:12] in notice
    assert f"store {store} was made from {hashlib.sha256(DATA.encode()).hexdigest()[:12]}; training uses the" in notice
    data.unlink()  # training does not need it
    assert changed_data_notice([DataSet(path=data)], store) is None
    assert changed_data_notice([DataSet(path=data)], tmp_path / "none") is None


def test_large_data_are_not_read(make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.json").write_text(DATA)
    store, sets = make_store(conversations="0" * 64), [DataSet(path=tmp_path / "data.json")]
    assert changed_data_notice(sets, store) is not None
    monkeypatch.setattr(alignkd.pipeline.runs.changed_data, "MAX_BYTES", len(DATA) - 1)
    assert changed_data_notice(sets, store) is None


def test_a_merged_store_is_compared_with_no_file(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(DATA)
    assert (
        changed_data_notice(
            [DataSet(path=tmp_path / "data.json")], make_store(merged_sources="2", source_000="0..1 ab")
        )
        is None
    )


def test_train_gives_the_line_once(
    make_store: MakeStore, write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(config: object) -> None:
        raise InputError("training began")

    monkeypatch.setattr(alignkd.pipeline.runs.student.train, "run_train", trained)
    make_store(conversations="0" * 64)
    for rank, lines in (("0", 2), ("1", 1)):
        ended = CliRunner().invoke(main, ["train", str(write_config())], env={"RANK": rank})
        assert ended.stderr.count("\n") == lines and "training began" in ended.stderr
        assert ("was made from 000000000000; training uses" in ended.stderr) == (rank == "0")
