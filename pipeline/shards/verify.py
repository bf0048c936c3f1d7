"""`alignkd shards verify`."""

import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import format_bytes, format_count, json_option, print_json, print_note
from alignkd.pipeline.shards.options import STORE, progress_bar

if TYPE_CHECKING:
    from alignkd.storage.files.source import StoreFiles
    from alignkd.storage.read.shard_records import UnreadableRecord
    from alignkd.storage.tools.verify.advantage import AdvantageSums
    from alignkd.storage.tools.verify.attention_sums import AttentionSums
    from alignkd.storage.tools.verify.label_shift import LabelVerdict
    from alignkd.storage.tools.verify.sequence import SequenceFigures
    from alignkd.storage.tools.verify.verify import VerifyReport


@click.command()
@STORE
@click.option("--quick", is_flag=True, help="Check commit records, presence and sizes; do not read the bytes.")
@click.option("--deep", is_flag=True, help="Also check the content: labels and attention.")
@json_option
@clean_errors
def verify(store: Path | str, quick: bool, deep: bool, as_json: bool) -> None:
    """Read STORE and name all damage.

    Every byte is read; every shard, record and field that differs from the committed one is named.

    --deep also finds errors that checksums cannot find: targets that belong to other positions (the teacher's
    perplexity of the labels is compared with that of labels shifted by one), attention values that are not
    probabilities, log-probabilities of samples that their logits do not give, and a teacher that ignored its images (of
    a store with a counterfactual pass).

    A remote store (s3://, https://) is read without the readers' cache. --quick requests only the sizes of its files.

    Exits with 1 if anything is wrong.

    Example: alignkd shards verify runs/store --deep
    """
    if quick and deep:
        raise click.UsageError("--quick and --deep exclude each other; give one of them")
    from alignkd.storage.places import open_files
    from alignkd.storage.schema.manifest import read_manifest

    records: list[UnreadableRecord] = []
    found: dict[str, Any] = {}
    from_stem = False
    opened = open_files(store)
    with nullcontext(opened) if quick else opened.past_caches() as files:
        report = _verify(files, quick)
        problems = [*report.problems]
        shards = sorted({problem.shard for problem in problems if problem.shard is not None})
        if not quick:
            records = _unreadable(files, shards)
        if deep and not any(problem.shard is None for problem in problems):
            problems, found = _plausibility(files, report, shards)
            from_stem = read_manifest(files).gives_attention_by_stem
    if as_json:
        shown = {**asdict(report), "problems": [asdict(problem) for problem in problems]}
        shown["damaged_records"] = [asdict(record) for record in records]
        findings = {name: asdict(values) for name, values in found.items()}
        print_json({"store": str(store), "ok": not problems, **shown, **findings})
    else:
        for problem in problems:
            print_note(" ".join(problem.message.split()))
        for record in records:
            click.echo(f"shard {record.shard}, record {record.record} (index {record.index}) cannot be read")
        if found:
            click.echo(labels_line(found["labels"]))
            click.echo(attention_line(found["attention"], from_stem=from_stem))
            if found["advantage"].positions:
                click.echo(advantage_line(found["advantage"]))
            if found["sequences"].records:
                click.echo(sequences_line(found["sequences"]))
        for note in report.notes:
            click.echo(f"note: {note}")
        verdict = "ok" if not problems else format_count(len(problems), "problem")
        click.echo(
            f"{store}: {verdict}; {format_count(report.num_shards, 'shard')}, "
            f"{format_count(report.num_records, 'record')}, "
            f"{format_bytes(report.num_bytes)} {'checked by size' if quick else 'read'}"
        )
    sys.exit(1 if problems else 0)


def _verify(files: "StoreFiles", quick: bool) -> "VerifyReport":
    from alignkd.storage.schema.commit_record import committed_shards
    from alignkd.storage.tools.verify.verify import verify_store

    total = len(committed_shards(files)) if sys.stderr.isatty() else 0
    with progress_bar("verify", total, "shard") as done:
        return verify_store(files, deep=not quick, on_shard=lambda commit: done(1))


def _unreadable(files: "StoreFiles", shards: list[int]) -> list["UnreadableRecord"]:
    """The unreadable records of damaged shards; a shard that cannot be opened has a problem of its own."""
    if not shards:
        return []
    from alignkd.storage.read.shard_records import ShardFolder

    folder = ShardFolder(files)
    return [record for shard in shards for record in folder.unreadable_records(shard) if record is not None]


def _plausibility(files: "StoreFiles", report: "VerifyReport", damaged: list[int]) -> tuple[list[Any], dict[str, Any]]:
    from alignkd.storage.tools.verify.plausibility import check_plausibility

    with progress_bar("check", report.num_records) as done:
        found = check_plausibility(files, skip=damaged, progress=done)
    return [*report.problems, *found.problems], {
        "labels": found.labels,
        "attention": found.attention,
        "advantage": found.advantage,
        "sequences": found.sequences,
    }


# outcome -> why the labels were not checked
NOT_CHECKED = {
    "no opinion": "the teacher's predictions are close to uniform, so they cannot show whether labels are shifted",
    "not enough data": "too few neighbouring supervised positions have different labels",
    "not stored": "the store contains no logits, or hidden states without lm_head.safetensors",
}


def labels_line(labels: "LabelVerdict") -> str:
    """The result of the check of labels on one line: what was found, or why nothing was checked."""
    reason = NOT_CHECKED.get(labels.outcome)
    outcome = labels.outcome if reason is None else f"not checked: {reason}"
    if labels.perplexity is None:
        return f"labels: {outcome}"
    shifted = {"next": labels.perplexity_next, "previous": labels.perplexity_previous}
    shown = [f"{name} {value:.4g}" for name, value in shifted.items() if value is not None]
    return (
        f"labels: {outcome}; teacher's perplexity {labels.perplexity:.4g} at {labels.positions} positions"
        f"{', shifted by one: ' + ', '.join(shown) if shown else ''}"
    )


def attention_line(attention: "AttentionSums", *, from_stem: bool) -> str:
    """The result of the check of attention on one line: what was found, or why nothing was checked."""
    if not attention.rows:
        source = "training takes it from the teacher's stem" if from_stem else "no record has any"
        return f"attention: not checked: the store contains none, {source}"
    return (
        f"attention: {'not probabilities' if attention.problems() else 'ok'}; {attention.rows} rows, each with a sum "
        f"between {attention.smallest_sum:.4f} and {attention.largest_sum:.4f}; lowest value {attention.smallest:.3g}"
    )


def advantage_line(advantage: "AdvantageSums") -> str:
    """Visual advantage on one line; of a store with a counterfactual pass."""
    return (
        f"visual advantage: mean {advantage.mean:.3g} nats at {advantage.positions} positions of samples with images, "
        f"above 0.1 at {advantage.clear / max(1, advantage.positions):.1%} of them, largest {advantage.largest:.3g}"
    )


def sequences_line(found: "SequenceFigures") -> str:
    """The teacher's perplexity of whole samples on one line; of a store with `sequence_logprob`."""
    smallest, lower, median, upper, largest = found.perplexities
    return (
        f"teacher on the text: mean NLL {found.mean_nll:.4g} nats, perplexity {found.perplexity:.4g} at "
        f"{found.positions} positions; of {found.records} records {smallest:.4g} to {largest:.4g}, median "
        f"{median:.4g}, quartiles {lower:.4g} and {upper:.4g}"
    )
