"""`alignkd shards diff`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import json_option, print_json
from alignkd.pipeline.shards.options import LOCATION, progress_bar

if TYPE_CHECKING:
    from alignkd.storage.tools.compare.diff import DiffReport, FieldDifference

MAX_NAMED = 10


@click.command()
@click.argument("a", type=LOCATION)
@click.argument("b", type=LOCATION)
@click.option("--tolerance", type=click.FloatRange(min=0), help="Largest difference of a number that counts as equal.")
@click.option("--ignore", multiple=True, metavar="FIELD", help="A field that is not compared; may be repeated.")
@json_option
@clean_errors
def diff(a: Path | str, b: Path | str, tolerance: float | None, ignore: tuple[str, ...], as_json: bool) -> None:
    """Compare stores A and B record by record.

    They may have different layouts and codecs. Records are matched by key. Without --tolerance a target must be
    equal to the bit where both stores keep it by the same codec, and agree within the codecs' stated error bounds
    where not. Differences between the manifests are shown and do not count.

    Exits with 0 when the stores are equal in this sense, with 1 when not.

    Example: alignkd shards diff runs/exact runs/compact --ignore logits
    """
    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.tools.compare.diff import diff_stores

    first, second = StoreReader(a, allow_incomplete=True), StoreReader(b, allow_incomplete=True)
    with progress_bar("compare", min(len(first), len(second))) as done:
        report = diff_stores(first, second, tolerance=tolerance, ignore=ignore, progress=done)
    if as_json:
        print_json({"a": str(a), "b": str(b), "equal": report.equal, **asdict(report)})
    else:
        click.echo("\n".join(_lines(report, str(a), str(b))))
    sys.exit(0 if report.equal else 1)


def _lines(report: "DiffReport", a: str, b: str) -> list[str]:
    lines = [f"manifest: {found.field} is {found.a} in A, {found.b} in B" for found in report.manifest]
    for store, names in ((a, report.only_a), (b, report.only_b)):
        lines += [f"only in {store}: index {name.index}, id {name.id!r}" for name in names[:MAX_NAMED]]
        lines += [f"only in {store}: {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    for store, listed in ((a, report.quarantined_only_a), (b, report.quarantined_only_b)):
        lines += [f"quarantined only in {store}: index {index}, id {name!r}" for index, name in listed[:MAX_NAMED]]
        lines += [f"quarantined only in {store}: {len(listed) - MAX_NAMED} more"] if len(listed) > MAX_NAMED else []
    lines += [_field_line(found) for found in report.fields]
    lines.append(f"{'equal' if report.equal else 'different'}: {report.matched} records in both")
    return lines


def _field_line(found: "FieldDifference") -> str:
    numbers = "" if found.max_abs is None else f", max abs {found.max_abs:.3g}"
    numbers += "" if found.relative_l2 is None else f", relative L2 {found.relative_l2:.3g}"
    judged = f"{found.beyond} beyond what is tolerated" if found.beyond else "all within what is tolerated"
    note = f" ({found.note})" if found.note else ""
    return (
        f"{found.field}: differs in {found.records} records, {judged}{numbers}{note}; "
        f"{'largest' if found.max_abs else 'first'} at index {found.worst.index}"
    )
