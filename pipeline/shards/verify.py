"""`alignkd shards verify`."""

import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console import clean_errors, format_bytes, json_option, print_json
from alignkd.pipeline.shards.options import STORE, progress_bar

if TYPE_CHECKING:
    from alignkd.storage.files.source import StoreFiles
    from alignkd.storage.read.shard_records import UnreadableRecord
    from alignkd.storage.tools.verify.attention_sums import AttentionSums
    from alignkd.storage.tools.verify.label_shift import LabelVerdict
    from alignkd.storage.tools.verify.verify import VerifyReport


@click.command()
@STORE
@click.option("--quick", is_flag=True, help="Only commit records, presence and sizes; do not read the bytes.")
@click.option("--deep", is_flag=True, help="Also check that what is stored makes sense: labels and attention.")
@json_option
@clean_errors
def verify(store: Path | str, quick: bool, deep: bool, as_json: bool) -> None:
    """Read STORE again and name all damage.

    Every byte is read; every shard, record and field that is not as committed is named.

    --deep also finds what checksums cannot: targets that belong to other positions (the teacher's perplexity of the
    labels is compared with that of labels shifted by one) and attention that is no probability.

    A distant store (s3://, https://) is read past the readers' cache. --quick asks only for the sizes of its files.

    Exits with 1 when anything is wrong.

    Example: alignkd shards verify runs/store --deep
    """
    if quick and deep:
        raise click.UsageError("--quick and --deep ask for the opposite; give one of them")
    from alignkd.storage.places import open_files

    records: list[UnreadableRecord] = []
    found: dict[str, Any] = {}
    opened = open_files(store)
    with nullcontext(opened) if quick else opened.past_caches() as files:
        report = _verify(files, quick)
        problems = [*report.problems]
        shards = sorted({problem.shard for problem in problems if problem.shard is not None})
        if not quick:
            records = _unreadable(files, shards)
        if deep and not any(problem.shard is None for problem in problems):
            problems, found = _plausibility(files, report, shards)
    if as_json:
        shown = {**asdict(report), "problems": [asdict(problem) for problem in problems]}
        shown["damaged_records"] = [asdict(record) for record in records]
        findings = {name: asdict(values) for name, values in found.items()}
        print_json({"store": str(store), "ok": not problems, **shown, **findings})
    else:
        for problem in problems:
            click.echo(" ".join(problem.message.split()), err=True)
        for record in records:
            click.echo(f"shard {record.shard}, record {record.record} (index {record.index}) cannot be used")
        _print_findings(found)
        for note in report.notes:
            click.echo(f"note: {note}")
        verdict = "ok" if not problems else f"{len(problems)} problems"
        click.echo(
            f"{store}: {verdict}; {report.num_shards} shards, {report.num_records} records, "
            f"{format_bytes(report.num_bytes)} {'looked at' if quick else 'read'}"
        )
    sys.exit(1 if problems else 0)


def _verify(files: "StoreFiles", quick: bool) -> "VerifyReport":
    from alignkd.storage.schema.commit_record import committed_shards
    from alignkd.storage.tools.verify.verify import verify_store

    total = len(committed_shards(files)) if sys.stderr.isatty() else 0
    with progress_bar("verify", total, "shard") as done:
        return verify_store(files, deep=not quick, on_shard=lambda commit: done(1))


def _unreadable(files: "StoreFiles", shards: list[int]) -> list["UnreadableRecord"]:
    """The records that damaged shards have lost; a whole shard that cannot be opened is named by its own problem."""
    if not shards:
        return []
    from alignkd.storage.read.shard_records import ShardFolder

    folder = ShardFolder(files)
    return [record for shard in shards for record in folder.unreadable_records(shard) if record is not None]


def _plausibility(files: "StoreFiles", report: "VerifyReport", damaged: list[int]) -> tuple[list[Any], dict[str, Any]]:
    from alignkd.storage.tools.verify.plausibility import check_plausibility

    with progress_bar("look", report.num_records) as done:
        found = check_plausibility(files, skip=damaged, progress=done)
    return [*report.problems, *found.problems], {"labels": found.labels, "attention": found.attention}


def _print_findings(found: dict[str, Any]) -> None:
    if found:
        click.echo(labels_line(found["labels"]))
        click.echo(attention_line(found["attention"]))


def labels_line(labels: "LabelVerdict") -> str:
    """The check of labels on one line."""
    if labels.perplexity is None:
        return f"labels: {labels.outcome}"
    beside = [f"{name} {value:.4g}" for name, value in _beside(labels).items() if value is not None]
    return (
        f"labels: {labels.outcome}; teacher's perplexity {labels.perplexity:.4g} at {labels.positions} positions"
        f"{', shifted by one: ' + ', '.join(beside) if beside else ''}"
    )


def attention_line(attention: "AttentionSums") -> str:
    """The check of attention on one line."""
    if not attention.rows:
        return "attention: not stored"
    return (
        f"attention: {'ok' if not attention.problems() else 'no probabilities'}; sums of {attention.rows} rows from "
        f"{attention.smallest_sum:.4f} to {attention.largest_sum:.4f}, lowest value {attention.smallest:.3g}"
    )


def _beside(labels: "LabelVerdict") -> dict[str, float | None]:
    return {"next": labels.perplexity_next, "previous": labels.perplexity_previous}
