"""The log-probability of a sample's labels: for every kind of logits that of the whole logits, in new stores always."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alignkd.pipeline.shards.show import show
from alignkd.pipeline.shards.stats import stats
from alignkd.pipeline.shards.verify import verify
from alignkd.storage import Record, StoreReader
from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.errors import RecordError
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB, SEQUENCE_TARGET
from alignkd.storage.tools.verify.sequence import SequenceSums
from alignkd.teacher_dump import fingerprint
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.targets.logits import distribution
from alignkd.teacher_dump.targets.logits.distribution import keep_distribution, sequence_logprob, stored_logits

KINDS: dict[str, dict[str, Any]] = {
    "full": {"dtype": "float16"},
    "topk": {"top_k": 5},
    "nucleus": {"p": 0.9, "min_entries": 2, "max_entries": 12},
    "hidden": {"dtype": "bfloat16"},
    "sampled": {"num_draws": 20},
    "none": {},
}
NOTHING = {"attention": "none", "vision_top": "none", "vision_all": "none"}


def labels_of(record: Record) -> torch.Tensor:
    return torch.from_numpy(record.labels[1:][record.labels[1:] != -100].astype(np.int64))


def value(record: Record) -> float:
    stored = record.more[SEQUENCE_LOGPROB]
    assert isinstance(stored, np.ndarray) and stored.dtype == np.float32 and stored.shape == (1,)
    return float(stored[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_logits_has_that_of_the_whole_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, labels = torch.randn(11, 6) * 3, torch.randint(40, (11,))
    head = torch.nn.Linear(6, 47, bias=False)  # 40 tokens and 7 columns of padding
    codec, uniforms = LogitsCodec(kind=kind, **KINDS[kind]), torch.rand(11, 20, dtype=torch.float64)
    expected = -torch.nn.functional.cross_entropy(head(hidden)[:, :40].double(), labels, reduction="sum").item()
    plain = keep_distribution(head, hidden, labels, uniforms, codec, num_tokens=40)
    for rows_at_once in (512, 4):
        monkeypatch.setattr(distribution, "POSITIONS_AT_ONCE", rows_at_once)
        rows = keep_distribution(head, hidden, labels, uniforms, codec, num_tokens=40, label_logprobs=True)
        arrays = {name: values.numpy() for name, values in rows.items()}
        found = sequence_logprob(arrays)
        assert found is not None and found.tolist() == pytest.approx([expected], rel=1e-6)
        assert rows.keys() - plain.keys() == {distribution.OF_LABELS}
        assert (stored_logits(arrays, codec) is None) == (kind == "none")
    assert sequence_logprob({name: values.numpy() for name, values in plain.items()}) is None
    hidden[3, 0] = torch.nan
    rows = keep_distribution(head, hidden, labels, uniforms, codec, label_logprobs=True)
    with pytest.raises(RecordError, match="at 1 of 11 supervised positions are NaN or infinite"):
        sequence_logprob({name: values.numpy() for name, values in rows.items()})


def test_stores_of_both_layouts_and_their_commands(make_job: Any, exact_records: dict[str, Record]) -> None:
    by_backend = {}
    for backend in ("zarr", "webdataset"):
        job = make_job(**NOTHING, backend=backend, logits={"kind": "topk", "top_k": 8})
        job = job.__class__(**{**vars(job), "store": job.store.model_copy(update={"path": job.store.path / backend})})
        dump(job)
        reader = StoreReader(job.store.path)
        assert reader.manifest.more == (SEQUENCE_TARGET,)
        by_backend[backend] = [value(reader[number]) for number in range(len(reader))]
        for number in range(len(reader)):  # text-only samples too; batches differ, so the sums differ by rounding
            logits = exact_records[reader.ids[number]].logits
            assert isinstance(logits, np.ndarray)
            rows = torch.from_numpy(logits).double().log_softmax(-1)
            expected = rows.gather(1, labels_of(reader[number])[:, None]).sum().item()
            assert value(reader[number]) == pytest.approx(expected, rel=1e-5)
    assert by_backend["zarr"] == by_backend["webdataset"]
    path, run = str(job.store.path), CliRunner().invoke
    shown = run(show, [path, "--index", "0"]).output
    assert "teacher on the text" in shown and "perplexity" in shown
    assert json.loads(run(show, [path, "--index", "0", "--json"]).output)["sequence_logprob"]["mean_nll"] > 0
    assert "of records" not in (lines := run(stats, [path]).output) and "median" in lines
    assert "sequence_logprob" in lines
    done = run(verify, [path, "--deep"])
    assert done.exit_code == 0 and "teacher on the text: mean NLL" in done.output


def test_a_value_that_the_logits_do_not_give_is_found(make_job: Any) -> None:
    job = make_job(**NOTHING, logits={"kind": "topk", "top_k": 8})
    dump(job)
    record = StoreReader(job.store.path)[0]
    for change, message in ((1.0, "the stored logits give"), (-2 * value(record), "expected at most 0")):
        sums = SequenceSums()
        object.__setattr__(record, "more", {SEQUENCE_LOGPROB: np.array([value(record) + change], np.float32)})
        sums.add(record)
        [problem] = sums.figures().problems
        assert message in problem
        object.__setattr__(record, "more", {SEQUENCE_LOGPROB: np.array([value(record) - change], np.float32)})


def test_a_store_of_an_earlier_version_is_continued_without_it(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(**NOTHING, logits={"kind": "none"})
    whole = fingerprint.manifest_of

    def earlier(*args: Any, **settings: Any) -> Any:
        return whole(*args, **settings).changed(more=())

    monkeypatch.setattr(fingerprint, "manifest_of", earlier)
    dump(job)
    monkeypatch.undo()
    files = {path: path.read_bytes() for path in sorted(Path(job.store.path).rglob("*")) if path.is_file()}
    commit = sorted(Path(job.store.path).glob("commits/*.json"))[-1]
    commit.unlink()
    assert dump(job).shards_written == 1
    reader = StoreReader(job.store.path)
    assert reader.manifest.more == () and not reader[0].more
    again = {path: path.read_bytes() for path in sorted(Path(job.store.path).rglob("*")) if path.is_file()}
    assert again == files
