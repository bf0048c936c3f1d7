"""Samples chosen from stores: scores against records that are read whole, references, lists and what refuses them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignkd.storage import Codecs, LogitsCodec, Record, Shapes, StoreError, StoreReader, as_float32
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.storage.tools.convert import convert_store
from alignkd.storage.tools.select import choose as choose_module
from alignkd.storage.tools.select.choose import Choice, choose
from alignkd.storage.tools.select.scan import advantage_scores, mean_nlls, rank_scores
from alignkd.storage.tools.select.selection import Selection

SUM = NamedTarget(name="sequence_logprob", kind="values", codec="float32", rows="record")
ADVANTAGE = NamedTarget(
    name="visual_advantage", kind="values", codec="float16", rows="supervised", forward_pass="replaced_vision"
)
SHAPES = Shapes(num_heads=2, hidden_size=6, vision_tokens=5, vocab_size=40, vision_top_tokens=3)
Make = Callable[..., Path]


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Counts what is done, and expects all of it."""
    done: list[int] = []
    yield done.append
    assert sum(done) in (total, 0) or what == "reference"


@pytest.fixture
def make_store(tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any) -> Make:
    """make_store(name, ...): twelve samples with full logits, sums and visual advantages; unique ids."""

    def make(name: str, *, key: str = "", nll: float | None = None, logits: str = "full", **fields: Any) -> Path:
        codec = LogitsCodec(kind="full", dtype="float32") if logits == "full" else LogitsCodec(kind=logits, num_draws=9)
        defaults: dict[str, Any] = {"codecs": Codecs(logits=codec), "more": (SUM, ADVANTAGE), "shapes": SHAPES}
        manifest = make_manifest(**defaults | {"num_samples": 12, "shard_size": 5} | fields)

        def record(index: int) -> Record:
            made = make_record(manifest, index, id=f"s-{index}")
            more = dict(made.more)
            if "sequence_logprob" in more and nll is not None:
                labels = len(made.supervised_positions)
                more["sequence_logprob"] = np.array([-labels * (nll + (index * 7) % 12)], np.float32)
            return replace(made, more=more, **({"key": key + made.key[len(key) :]} if key else {}))

        return write_store(tmp_path / name, manifest, record_of=record, quarantine=(4,))

    return make


def labels_of(record: Record) -> Any:
    return record.labels[1:][record.labels[1:] != -100]


def test_scores_are_those_of_whole_records(make_store: Make) -> None:
    reader = StoreReader(make_store("store"))
    nll = mean_nlls(reader)
    for position, record in enumerate(reader):
        stored = float(record.more["sequence_logprob"][0])  # type: ignore[index]
        assert nll[position] == pytest.approx(-stored / len(labels_of(record)), rel=1e-6)
    found = choose(reader, Choice(by="visual-advantage", ratio=1.0, keep_unscored=True), bar)
    shares = choose(reader, Choice(by="visual-advantage", above=0.5, least=0.4), bar)
    for position, record in enumerate(reader):
        if record.has_image:
            values = as_float32(record.more["visual_advantage"])  # type: ignore[arg-type]
            assert found.scores[position] == pytest.approx(values.mean(dtype=np.float64))
            assert shares.scores[position] == np.mean(values > 0.5)
        else:
            assert np.isnan(found.scores[position])
    assert len(found.selection.kept) == len(reader) == 11
    assert found.selection.without_score == sum(not record.has_image for record in reader) > 0
    kept = [record.index for position, record in enumerate(reader) if shares.scores[position] >= 0.4]
    assert shares.selection.kept.tolist() == sorted(kept)


def test_both_layouts_give_the_same_scores(make_store: Make, tmp_path: Path) -> None:
    store = make_store("store")
    convert_store(store, tmp_path / "tar", "webdataset")
    zarr, tar = StoreReader(store), StoreReader(tmp_path / "tar")
    np.testing.assert_array_equal(mean_nlls(zarr), mean_nlls(tar))
    np.testing.assert_array_equal(advantage_scores(zarr), advantage_scores(tar))
    np.testing.assert_array_equal(rank_scores(zarr, k=4).shares, rank_scores(tar, k=4).shares)


def test_without_the_sum_it_follows_from_logits(make_store: Make) -> None:
    """Full logits are exact; a subset of positions gives the same numbers."""
    reader = StoreReader(make_store("full", more=()))
    nll = mean_nlls(reader)
    for position, record in enumerate(reader):
        logprobs = reader.logprobs(position).of(labels_of(record))
        assert nll[position] == pytest.approx(-logprobs.mean(dtype=np.float64), rel=1e-5)
    some = np.array([1, 6, 9])
    np.testing.assert_array_equal(mean_nlls(reader, some), nll[some])
    shares = rank_scores(reader, k=3)
    assert shares.undecided == 0 and shares.labels == sum(len(labels_of(record)) for record in reader)


def test_draws_give_no_log_probability(make_store: Make) -> None:
    reader = StoreReader(make_store("drawn", more=(), logits="sampled"))
    with pytest.raises(StoreError, match=r"keeps no sequence_logprob, and logits of kind sampled .* dump the data"):
        mean_nlls(reader)
    with pytest.raises(StoreError, match="do not order the tokens"):
        rank_scores(reader, k=1)


def test_difference_to_a_store_is_that_to_a_file(make_store: Make, tmp_path: Path) -> None:
    """Records are matched by key in whatever order; the list names index, settings and counts."""
    reader = StoreReader(make_store("teacher", nll=1.0))
    other = StoreReader(make_store("small", seed=9, shard_size=3))  # sums are random, the order is another
    by_store = choose(reader, Choice(by="difference", reference=other.path, ratio=0.5), bar)
    nll = mean_nlls(other)
    save_file({"index": other.dataset_index, "mean_nll": nll}, tmp_path / "nll.safetensors")
    by_file = choose(reader, Choice(by="difference", reference=tmp_path / "nll.safetensors", ratio=0.5), bar)
    np.testing.assert_allclose(by_store.scores, by_file.scores)
    expected = {int(i): float(n) for i, n in zip(other.dataset_index, nll, strict=True)}
    own = mean_nlls(reader)
    scores = {int(i): expected[int(i)] - float(own[n]) for n, i in enumerate(reader.dataset_index)}
    best = sorted(scores, key=lambda index: -scores[index])[:5]
    assert by_store.selection.kept.tolist() == sorted(best) == by_file.selection.kept.tolist()
    assert by_store.missing == []


def test_models_of_other_templates_are_matched_by_id(make_store: Make) -> None:
    reader = StoreReader(make_store("teacher"))
    same, other = StoreReader(make_store("same", seed=3)), make_store("other", key="ffff", seed=3)
    by_key = choose(reader, Choice(by="difference", reference=same.path, ratio=0.5), bar)
    by_id = choose(reader, Choice(by="difference", reference=other, ratio=0.5), bar)
    np.testing.assert_array_equal(by_key.scores, by_id.scores)


def test_what_a_reference_lacks_is_listed(make_store: Make, tmp_path: Path) -> None:
    reader = StoreReader(make_store("teacher"))
    save_file({"index": np.array([0, 3, 8]), "mean_nll": np.array([1.0, 2.0, 3.0])}, tmp_path / "few.safetensors")
    found = choose(reader, Choice(by="difference", reference=tmp_path / "few.safetensors", ratio=1.0), bar)
    assert found.selection.kept.tolist() == [0, 3, 8] and found.selection.without_score == 8
    assert sorted(found.missing) == sorted(f"s-{index}" for index in (1, 2, 5, 6, 7, 9, 10, 11))
    save_file({"index": np.array([0, 0]), "mean_nll": np.ones(2)}, tmp_path / "twice.safetensors")
    with pytest.raises(StoreError, match="an index twice"):
        choose(reader, Choice(by="difference", reference=tmp_path / "twice.safetensors"), bar)
    save_file({"nll": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(StoreError, match="has no tensor 'index'"):
        choose(reader, Choice(by="difference", reference=tmp_path / "other.safetensors"), bar)
    save_file({"index": np.arange(3), "mean_nll": np.array([1.0, np.inf, np.nan])}, tmp_path / "infinite.safetensors")
    with pytest.raises(StoreError, match="1 of 3 values of mean_nll are infinite"):
        choose(reader, Choice(by="difference", reference=tmp_path / "infinite.safetensors"), bar)
    header = json.dumps({"mean_nll": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "half.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(StoreError, match=r"half\.safetensors: has a tensor that cannot be read"):
        choose(reader, Choice(by="difference", reference=tmp_path / "half.safetensors"), bar)
    with pytest.raises(StoreError, match=r"gone\.json: not a file; write the list of samples by"):
        Selection.read(tmp_path / "gone.json")


def test_equal_scores_are_decided_by_the_number_in_the_data(make_store: Make) -> None:
    """Two stores of other orders give the same list."""
    lists = []
    for name, seed in (("one", 1), ("two", 8)):
        reader = StoreReader(make_store(name, seed=seed, shard_size=5))
        scores = np.zeros(len(reader))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(choose_module, "mean_nlls", lambda *_, zeros=scores, **__: zeros)
            lists.append(choose(reader, Choice(by="perplexity", ratio=0.4), bar).selection.kept.tolist())
    assert lists[0] == lists[1] == [0, 1, 2, 3]


def test_a_reference_of_another_tokenizer_is_refused(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, other = StoreReader(make_store("teacher")), make_store("small")
    fewer = reader.num_supervised - 1
    monkeypatch.setattr(StoreReader, "num_supervised", property(lambda self: fewer + (self.path != other)))
    with pytest.raises(StoreError, match=r"11 of 11 samples have another number of labels .* teacher's tokenizer"):
        choose(reader, Choice(by="difference", reference=other), bar)


def test_perplexity_keeps_the_lowest(make_store: Make) -> None:
    reader = StoreReader(make_store("store", nll=0.5))
    found = choose(reader, Choice(by="perplexity", ratio=0.3), bar)
    nll = mean_nlls(reader)
    np.testing.assert_allclose(found.scores, np.exp(nll))
    assert set(found.selection.kept) == set(reader.dataset_index[np.argsort(nll)[:3]])


def test_a_list_holds_for_the_same_samples_only(make_store: Make, tmp_path: Path) -> None:
    """Also in another layout and with other targets, but not for a store of more or other samples."""
    store = make_store("store")
    chosen = choose(StoreReader(store), Choice(by="perplexity", ratio=0.5), bar).selection
    chosen.write(tmp_path / "list.json")
    read = Selection.read(tmp_path / "list.json")
    assert (read.kept.tolist(), read.content_hash, dict(read.settings)) == (
        chosen.kept.tolist(),
        chosen.content_hash,
        {"ratio": 0.5},
    )
    convert_store(store, tmp_path / "tar", "webdataset")
    for path in (store, tmp_path / "tar", make_store("poor", more=(), seed=5)):
        reader = StoreReader(path)
        assert reader.dataset_index[read.positions(reader)].tolist() != []
        assert sorted(reader.dataset_index[read.positions(reader)]) == read.kept.tolist()
    with pytest.raises(StoreError, match=r"was made for 11 samples of store .*store .* has 9 samples"):
        read.positions(StoreReader(make_store("less", num_samples=10)))
    with pytest.raises(StoreError, match="was made for 11 samples"):
        read.positions(StoreReader(make_store("others", key="ab")))


def test_an_edited_list_is_refused(make_store: Make, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    choose(StoreReader(make_store("store")), Choice(by="perplexity", ratio=0.5), bar).selection.write(path)
    path.write_text(path.read_text().replace('"by": "perplexity"', '"by": "difference"'))
    with pytest.raises(StoreError, match="or it was edited"):
        Selection.read(path)
    path.write_text(json.dumps({"kept": [1]}))
    with pytest.raises(StoreError, match=r"list\.json: not a list of samples"):
        Selection.read(path)
    with pytest.raises(StoreError, match=r"nowhere\.json"):
        Selection.read(tmp_path / "nowhere.json")
