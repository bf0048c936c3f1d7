"""Cost of the teacher pass, against the bare forward passes of the same batches and against a naive script.

    python benchmarks/dump.py [--samples 16] [--hidden 1536] [--layers 10] [--entropy 2] [--device cpu] [--markdown]

* bare: tower, projector and decoder on the prepared batches of the dump, and logits at supervised positions if the
  profile needs them (`compact`; `exact` stores hidden states); nothing is kept.
* dump: `alignkd dump`'s own function into a fresh store: reading, decoding, tokenising, forward, targets, encoding,
  checksums, fsync, reading back, commit. Loading the teacher and hashing its weights are not included.
* naive: a simple script: samples in the order of the file, `output_attentions=True`, logits of every
  position, one `np.save` per target and sample, one after the other.

The size of a `compact` store depends on the teacher's entropy. `--entropy` scales the random `lm_head` until the mean
entropy of the next token at supervised positions is that many nats: a trained teacher has 1 to 3; with 10, the worst
case, every position has the largest number of entries. The option can be repeated.

Rounds alternate bare and dump, and ratios compare two figures of the same round. On a CPU the dump's threads compete
with the forward pass for the same cores, so all other work takes time; `--threads` sets torch's threads in all cases.
Peak memory is measured in one process per case, minus its memory after loading the teacher, and with the random head,
which gives every position the largest number of entries.
"""

import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from cases.dump_inputs import scale_head, write_inputs
from cases.measuring import machine

from alignkd.storage.layouts.registry import layout_names
from alignkd.storage.schema.order import shard_plan
from alignkd.storage.write.store import StoreWriter
from alignkd.teacher_dump.bucketing import least_work_buckets
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.preparation import PreparationThreads, Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.teacher_dump.teacher import load_teacher
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences

CASES = ("bare", "dump", "naive")
# largest number of positions for the mean of `--entropy`
SCALED_BY = 256


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of a case: wall seconds, processor seconds, number of samples."""

    seconds: float
    cpu_seconds: float
    samples: int


@click.command()
@click.option("--samples", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--hidden", type=click.IntRange(min=64), default=1536, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--token-budget", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--shard-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--profile", type=click.Choice(["exact", "compact"]), multiple=True, help="Default: both.")
@click.option("--entropy", type=click.FloatRange(0.01, 10.3), multiple=True, default=[2.0], show_default=True)
@click.option("--backend", type=click.Choice(layout_names()), default="zarr", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=torch.get_num_threads(), show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--naive/--no-naive", default=True, show_default=True)
@click.option("--memory/--no-memory", default=True, show_default=True, help="Peak memory, a process per case.")
@click.option("--markdown", is_flag=True)
@click.option("--memory-of", type=click.Choice(CASES), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(**options: Any) -> None:
    """Measure the dump as a share of the bare forward passes, and both against the naive script."""
    torch.set_num_threads(options["threads"])
    if options["memory_of"] is not None:
        print(json.dumps(memory_of(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options["folder"] = Path(folder)
        write_inputs(Path(folder), options)
        report(options)


def report(options: dict[str, Any]) -> None:
    """Measure and print."""
    print(f"{machine()}; torch with {options['threads']} threads, {options['device']}, {options['dtype']}")
    bench = Bench(options)
    parameters = sum(weight.numel() for weight in bench.model.parameters())
    lengths = [sample.length for sample in bench.prepared]
    print(
        f"{parameters / 1e6:.0f} M parameters, {len(lengths)} samples of {min(lengths)}..{max(lengths)} tokens in "
        f"{len(bench.batches)} batches of at most {options['token_budget']} padded tokens "
        f"({sum(lengths) / sum(b.input_ids_BL.numel() for b in bench.batches):.0%} of them real)"
    )
    rows: list[tuple[str, ...]] = [
        ("case", "samples/s", "of bare, wall", "lowest..highest", "of bare, processor", "peak memory MiB")
    ]
    for number, (profile, nats) in enumerate(_settings(options)):
        print(bench.set(profile, nats))
        bench.bare()  # warm up
        cases = {"bare": bench.bare, f"dump, {profile}, {nats:g} nats": bench.dump}
        if options["naive"] and number == 0:
            cases["naive"] = bench.naive
        found: dict[str, list[Measured]] = {name: [] for name in cases}
        for _ in range(options["rounds"]):
            for name, run in cases.items():
                found[name].append(run())
        peaks = {name: peak_memory(options, name, profile) if options["memory"] else None for name in cases}
        rows += [row_of(name, measured, found["bare"], peaks[name]) for name, measured in found.items()]
    print()
    print(as_table(rows, options["markdown"]))


def _settings(options: dict[str, Any]) -> list[tuple[str, float]]:
    """Profiles and entropies; `exact` stores hidden states, which do not depend on the entropy."""
    profiles, entropies = options["profile"] or ("exact", "compact"), options["entropy"]
    return [(name, nats) for name in profiles for nats in (entropies if name == "compact" else entropies[:1])]


class Bench:
    """A teacher, its prepared samples, and the three ways to run it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.folder, self.profile = options, options["folder"], "exact"
        job = self.job()
        self.model = load_teacher(job, job.open_teacher())
        builder = load_preparation(self.folder / "teacher", template="v1")
        samples = list(open_data(DataSet(path=self.folder / "data.json", images=self.folder / "images")))
        with PreparationThreads(builder, self.folder / "images", 2) as preparation:
            self.prepared = preparation.prepare(samples)
        self.batches = [self._batch(batch) for batch in self._plan()]

    @torch.no_grad()
    def set(self, profile: str, nats: float) -> str:
        """Choose the profile and the teacher's mean entropy of the next runs; return the entropy as text."""
        self.profile, model = profile, self.model
        batch = self.batches[0].to(self.options["device"])
        hidden_BLD = model.hidden_states(batch, model.encode_images(batch.images))
        found_N = scale_head(model, hidden_BLD[batch.supervised_mask_BL][:SCALED_BY], nats)
        spread = f"{found_N.min():.2f}..{found_N.max():.2f}"
        return f"{profile}: next token of {found_N.mean():.2f} nats ({spread} at {len(found_N)} supervised positions)"

    def job(self) -> DumpJob:
        """The job as `alignkd dump` would run it."""
        options = self.options
        return DumpJob(
            data=(DataSet(path=self.folder / "data.json", images=self.folder / "images"),),
            template="v1",
            max_tokens=2048,
            teacher=TeacherConfig(
                checkpoint=str(self.folder / "teacher"),
                dtype=options["dtype"],
                device=options["device"],
                token_budget=options["token_budget"],
                sanity="off",
            ),
            store=StoreConfig(
                path=self.folder / "store",
                profile=self.profile,
                backend=options["backend"],
                shard_size=options["shard_size"],
            ),
        )

    def bare(self) -> Measured:
        """The forward passes alone."""
        with measuring(self.options["device"]) as measured, torch.no_grad():
            for batch in self.batches:
                self._forward(batch.to(self.options["device"]))
        return measured(len(self.prepared))

    def _forward(self, batch: SequenceBatch) -> None:
        """`MobileVLM.forward`, without logits if the profile stores hidden states."""
        if self.profile == "exact":
            self.model.hidden_states(batch, self.model.encode_images(batch.images))
        else:
            self.model(batch)

    def dump(self) -> Measured:
        """The dump between opening the store and its last commit."""
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        control = _Timed(self.options["device"])
        result = dump(replace(self.job(), control=control), self.model)
        assert result.num_records == len(self.prepared), result
        assert control.measured is not None
        return control.measured(result.num_records)

    def naive(self) -> Measured:
        """All targets of one sample after the other."""
        out = self.folder / "naive"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        decoder = self.model.model
        decoder.set_attn_implementation("eager")  # the only implementation that returns attention
        size = max(1, self.options["token_budget"] // max(sample.length for sample in self.prepared))
        try:
            with measuring(self.options["device"]) as measured, torch.no_grad():
                for start in range(0, len(self.prepared), size):
                    self._save_batch(out, self.prepared[start : start + size])
        finally:
            decoder.set_attn_implementation("sdpa")
        return measured(len(self.prepared))

    def _save_batch(self, out: Path, samples: Sequence[Prepared]) -> None:
        batch = self._batch(samples).to(self.options["device"])
        vision = self.model.encode_images(batch.images)
        embeds = self.model.embed(batch, vision)
        found = self.model.model(inputs_embeds=embeds, use_cache=False, output_attentions=True)
        logits = self.model.lm_head(found.last_hidden_state)
        for row, sample in enumerate(samples):
            at = sample.example.positions
            attention = found.attentions[0][row][:, at.tqv_query_positions][:, :, at.vision_positions]
            for name, values in (
                ("attention", attention),
                ("vision", vision.embeddings_PD.unflatten(0, (len(samples), -1))[row]),
                ("logits", logits[row][at.supervised_positions]),
            ):
                np.save(out / f"{sample.sample.id}.{name}.npy", values.half().cpu().numpy())

    def _plan(self) -> Iterator[list[Prepared]]:
        """The dump's own batches, shard by shard and window by window."""
        teacher = self.job().teacher
        for planned in shard_plan(len(self.prepared), self.options["shard_size"], seed=0):
            for start in range(0, len(planned), teacher.window):
                window = [self.prepared[index] for index in planned[start : start + teacher.window]]
                lengths = [sample.length for sample in window]
                buckets = least_work_buckets(lengths, token_budget=teacher.token_budget, max_samples=teacher.batch)
                yield from ([window[number] for number in bucket] for bucket in buckets)

    @staticmethod
    def _batch(samples: Sequence[Prepared]) -> SequenceBatch:
        return collate_sequences([replace(sample.example, images=sample.images) for sample in samples])


class _Timed(DumpControl):
    """Measures the time between opening the store and its last commit."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.measured: Callable[[int], Measured] | None = None

    @contextmanager
    def over(self, store: StoreWriter) -> Iterator[Iterator[int]]:
        with super().over(store) as shards, measuring(self._device) as self.measured:
            yield shards


@contextmanager
def measuring(device: str) -> Iterator[Callable[[int], Measured]]:
    """Time a block; gives a function that afterwards makes a `Measured` from the number of samples."""
    _synchronize(device)
    started, cpu = time.perf_counter(), time.process_time()
    ended: list[float] = []
    yield lambda samples: Measured(seconds=ended[0], cpu_seconds=ended[1], samples=samples)
    _synchronize(device)
    ended += [time.perf_counter() - started, time.process_time() - cpu]


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def memory_of(options: dict[str, Any]) -> float:
    """Run one case in this process; return the MiB that it took in addition to the teacher and the prepared samples."""
    bench = Bench(options)
    bench.profile = options["profile"][
        0
    ]  # with the random head: a forward pass to scale it would leave memory allocated
    cuda = options["device"].startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: resets the peak
    held = torch.cuda.memory_allocated() / 2**20 if cuda else _peak_host_memory()
    getattr(bench, options["memory_of"])()
    return (torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_host_memory()) - held


def peak_memory(options: dict[str, Any], case: str, profile: str) -> float:
    """`memory_of` a case, in a separate process."""
    given = [f"--{name.replace('_', '-')}={options[name]}" for name in _PASSED_ON]
    command = [sys.executable, __file__, *given, f"--profile={profile}", f"--memory-of={case.partition(',')[0]}"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(finished.stdout.splitlines()[-1])


_PASSED_ON = (
    *("samples", "hidden", "layers", "token_budget", "shard_size", "backend", "dtype", "device", "threads"),
    "folder",
)


def _peak_host_memory() -> float:
    """Peak MiB of anonymous and mapped memory since the peak was last cleared."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def row_of(name: str, measured: Sequence[Measured], bare: Sequence[Measured], peak: float | None) -> tuple[str, ...]:
    """Medians of a case over the rounds."""
    rate = statistics.median(run.samples / run.seconds for run in measured)
    ratios = [b.seconds / run.seconds for run, b in zip(measured, bare, strict=True)]
    cpu = statistics.median(b.cpu_seconds / run.cpu_seconds for run, b in zip(measured, bare, strict=True))
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    return (
        name,
        f"{rate:.2f}",
        f"{statistics.median(ratios):.3f}",
        spread,
        f"{cpu:.3f}",
        "" if peak is None else f"{peak:.0f}",
    )


def as_table(rows: Sequence[tuple[str, ...]], markdown: bool) -> str:
    """Text in columns, or a markdown table."""
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([lines[0], "|:--" + "|--:" * (len(rows[0]) - 1) + "|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    main()
