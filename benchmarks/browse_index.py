"""Time of the index of `alignkd shards browse`: making it, opening it again, and every question to it.

    python benchmarks/browse_index.py [--records 100000] [--rounds 5] [--folder FOLDER]

The store is made up: conversations of 40 to 200 words of a vocabulary as frequent as those of a language, 12 labels
with 8 tokens each, attention of 2 heads and 4 queries to 16 vision tokens. Real targets are larger, so reading the
figures of a real store takes longer in the background; questions do not depend on them. Every round asks each question
for the first time: results that the index keeps are dropped before. Other work on the machine increases wall time, but
not processor time; medians are printed.
"""

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import click
import numpy as np
from cases.measuring import machine

from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.store_index import StoreIndex, open_index
from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, TruncatedLogits, open_writer
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB, SEQUENCE_TARGET

WORDS = 20_000
TOKENS, LABELS, KEPT, VISION, QUERIES, HEADS = 60, 12, 8, 16, 4, 2
BROKEN_EVERY = 200


@click.command()
@click.option("--records", type=click.IntRange(min=1000), default=100_000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the made store here for the next time.")
def main(records: int, rounds: int, folder: Path | None) -> None:
    """Measure the index of a made store.

    Example: python benchmarks/browse_index.py --records 10000
    """
    print(f"{' '.join(['python benchmarks/browse_index.py', *sys.argv[1:]])}\n\n{machine()}\n", flush=True)
    with _folder(folder) as place:
        store = place / f"store-{records}"
        if not (store / "manifest.json").exists():
            seconds = _timed(lambda: make_store(store, records))
            print(f"made the store in {seconds:.0f} s", flush=True)
        reader = StoreReader(store)
        _measure_making(reader, store)
        with open_index(reader) as index:
            index.wait()
            print(f"\n{'question, first time':50} {'processor s':>12} {'wall s':>8}")
            for name, question in _questions(index).items():
                wall, processor = zip(*[_first_time(index, question) for _ in range(rounds)], strict=True)
                print(f"{name:50} {statistics.median(processor):12.4f} {statistics.median(wall):8.4f}", flush=True)


def _measure_making(reader: StoreReader, store: Path) -> None:
    """Make the index, open it again, and print how long both take."""
    rmtree(store / ".browse", ignore_errors=True)
    start, processor = time.perf_counter(), time.process_time()
    with open_index(reader) as index:
        first = _wait(lambda: index.state().indexed == index.state().total) - start
        whole = _wait(lambda: not index.state().running) - start
        assert not index.state().problems, index.state().problems
    print(f"{len(reader)} records and {len(reader.quarantined)} unusable samples in {len(reader.commits)} shards")
    print(f"indexed after {first:.1f} s, with all figures after {whole:.1f} s ", end="")
    print(f"(processor {time.process_time() - processor:.1f} s)")
    size = (store / ".browse" / "index.sqlite").stat().st_size
    print(f"index.sqlite: {size / 1e6:.0f} MB, {size / len(reader):.0f} bytes per record")
    start = time.perf_counter()
    with open_index(reader) as index:
        print(f"opened again after {_wait(lambda: not index.state().running) - start:.2f} s")


def _questions(index: StoreIndex) -> dict[str, Callable[[], object]]:
    everything = Filter()
    usual = Filter(text="word12 word7", ranges={"perplexity": (2.0, None), "tokens": (None, 90)})
    numbers = [column.name for column in index.columns() if column.kind != "text" and column.available]
    texts = [column.name for column in index.columns() if column.kind == "text"]
    pages = {
        f"page by {name}, descending": lambda name=name: index.page(sort=name, descending=True)
        for name in (*numbers, *texts)
    }
    histograms = {
        f"histogram of {name}, filtered by perplexity": lambda name=name: index.histogram(
            Filter(ranges={"perplexity": (2.0, 5.0)}), name
        )
        for name in numbers
    }
    return {
        **pages,
        "page at the end": lambda: index.page(offset=len(index.reader) - 50),
        "part of an id": lambda: index.page(Filter(id="99")),
        "a data set": lambda: index.page(Filter(sources=("second",))),
        "unusable samples of one reason": lambda: index.page(Filter(unusable=True, reasons=("... is missing",))),
        "search: a word of every conversation": lambda: index.page(Filter(text="word0")),
        "search: beginning of 1100 words": lambda: index.page(Filter(text="word12*")),
        "search: two words": lambda: index.page(Filter(text="word12 word7")),
        "search: two words in sequence": lambda: index.page(Filter(text='"word1 word0"')),
        "search: a rare word": lambda: index.page(Filter(text="word19000")),
        "search, two ranges, by entropy": lambda: index.page(usual, sort="entropy", descending=True),
        **histograms,
        "histograms of all columns, one filter": lambda: [index.histogram(usual, name) for name in numbers],
        "columns with ranges": index.columns,
        "data sets": lambda: index.sources(usual),
        "reasons": lambda: index.reasons(everything),
        "neighbours": lambda: index.neighbours(usual, sort="entropy", position=len(index.reader) // 2),
    }


def _first_time(index: StoreIndex, question: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time without results that the index keeps."""
    index.table.changed()
    processor = time.process_time()
    return _timed(question), time.process_time() - processor


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _wait(condition: Callable[[], bool]) -> float:
    """The time at which a condition came true."""
    while not condition():
        time.sleep(0.01)
    return time.perf_counter()


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="alignkd-browse-") as made:
        yield Path(made)


def make_store(store: Path, records: int) -> None:
    """Write the made store; one sample in 200 is unusable."""
    rng = np.random.default_rng(0)
    manifest = _manifest(records)
    writer = open_writer(store, manifest)
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                if index % BROKEN_EVERY == 0:
                    sink.quarantine(index, f"sample-{index:07d}", f"'{index}.jpg' is missing")
                else:
                    sink.append(_record(index, rng))
            sink.commit()


def _manifest(records: int) -> Manifest:
    first = records * 2 // 3
    return Manifest(
        fingerprint={"weights": "made"},
        data_fingerprint={"conversations": "made"},
        shapes=Shapes(num_heads=HEADS, hidden_size=8, vision_tokens=VISION, vocab_size=32_000),
        codecs=Codecs(
            attention="sqrt_u8", vision_top="none", vision_all="none", logits=LogitsCodec(kind="topk", top_k=KEPT)
        ),
        more=(SEQUENCE_TARGET,),
        num_samples=records,
        sources=({"name": "first", "num_samples": first}, {"name": "second", "num_samples": records - first}),  # type: ignore[arg-type]
        shard_size=1024,
        seed=0,
    )


def _record(index: int, rng: np.random.Generator) -> Record:
    from alignkd.storage import EncodedArray

    tokens = TOKENS + index % 50
    ids = rng.integers(3, 32_000, tokens).astype(np.int32)
    ids[4], labels = -200, np.full(tokens, -100, np.int32)
    labels[-LABELS:] = ids[-LABELS:]
    logprobs = np.sort(rng.normal(-2, 1.5, (LABELS, KEPT + 1)))[:, ::-1]
    logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True))
    kept = np.stack([np.arange(3, 3 + KEPT) + position for position in range(LABELS)])
    kept[:, 0] = labels[-LABELS:]
    attention = rng.random((1, QUERIES, HEADS, VISION)).astype(np.float32) / VISION
    return Record(
        key=hashlib.sha256(str(index % (1 << 30)).encode()).hexdigest(),
        id=f"sample-{index:07d}",
        index=index,
        conversations=[{"from": who, "value": _said(rng)} for who in ("human", "gpt")],
        images=(f"images/{index}.jpg",),
        image_sha256=(hashlib.sha256(str(index // 2).encode()).hexdigest(),),
        input_ids=ids,
        labels=labels,
        vision_positions=np.arange(4, 4 + VISION, dtype=np.int32),
        tqv_query_positions=np.arange(tokens + VISION - 1 - QUERIES, tokens + VISION - 1, dtype=np.int32),
        supervised_positions=np.arange(tokens - LABELS - 1, tokens - 1, dtype=np.int32) + VISION - 1,
        attention=EncodedArray.encode("sqrt_u8", attention),
        logits=TruncatedLogits(
            ids=kept.reshape(-1).astype(np.uint16),
            logprobs=logprobs[:, :KEPT].reshape(-1).astype(np.float16),
            offsets=np.arange(LABELS + 1, dtype=np.int64) * KEPT,
            tail_logmass=logprobs[:, KEPT].astype(np.float32),
        ),
        more={SEQUENCE_LOGPROB: np.array([logprobs[:, 0].sum() * rng.random() * 3], np.float32)},
    )


def _said(rng: np.random.Generator) -> str:
    """20 to 100 words: the word of rank r has a frequency of about 1 / r, and word0 is in every text."""
    ranks = np.minimum(np.exp(rng.random(int(rng.integers(20, 100))) * np.log(WORDS)).astype(np.int64), WORDS - 1)
    return " ".join(["word0", *(f"word{rank}" for rank in ranks.tolist())])


if __name__ == "__main__":
    main()
