"""`alignkd shards diff`."""

import sys
from collections.abc import Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.numbers import FiniteFloat
from alignkd.pipeline.console.printing import format_count, json_option, print_json
from alignkd.pipeline.shards.options import LOCATION, progress_bar

if TYPE_CHECKING:
    from alignkd.storage.tools.compare.diff import DiffReport, FieldDifference

MAX_NAMED = 10
# how a difference notes that one of the records has no such field
ONLY_IN = "only in "
# field of a record -> target, for the targets that training can take from the teacher's stem
_FIELDS_OF_STEM = {
    "attention": "attention",
    "vision_top_index": "vision_top",
    "vision_top_embeddings": "vision_top",
    "vision_embeddings": "vision_all",
}


@click.command()
@click.argument("a", type=LOCATION)
@click.argument("b", type=LOCATION)
@click.option("--tolerance", type=FiniteFloat(min=0), help="Largest difference of two numbers that counts as equal.")
@click.option("--ignore", multiple=True, metavar="FIELD", help="A field not to compare; may be repeated.")
@json_option
@clean_errors
def diff(a: Path | str, b: Path | str, tolerance: float | None, ignore: tuple[str, ...], as_json: bool) -> None:
    """Compare stores A and B record by record.

    The stores may have different layouts and codecs. Records are matched by key. Without --tolerance, a target that
    both stores keep with the same codec must be equal bit by bit; with different codecs it must agree within the sum
    of their stated error bounds. Differences between the manifests are shown but do not count.

    Exits with 0 if the stores are equal in this sense, otherwise with 1.

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
        stems = set(first.manifest.from_stem) ^ set(second.manifest.from_stem)
        click.echo("\n".join(_lines(report, str(a), str(b), stems)))
    sys.exit(0 if report.equal else 1)


def _lines(report: "DiffReport", a: str, b: str, stems: Set[str]) -> list[str]:
    """The report for a terminal.

    Args:
        stems: targets that training takes from the teacher's stem with one of the stores, but not with the other.
    """
    lines = [f"manifest: {found.field} is {found.a} in A, {found.b} in B" for found in report.manifest]
    for store, names in ((a, report.only_a), (b, report.only_b)):
        lines += [f"only in {store}: index {name.index}, id {name.id!r}" for name in names[:MAX_NAMED]]
        lines += [f"only in {store}: {len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    for store, listed in ((a, report.quarantined_only_a), (b, report.quarantined_only_b)):
        lines += [f"unusable only in {store}: index {index}, id {name!r}" for index, name in listed[:MAX_NAMED]]
        lines += [f"unusable only in {store}: {len(listed) - MAX_NAMED} more"] if len(listed) > MAX_NAMED else []
    missing = {found.field: found.note for found in report.fields if _target_of(found.field) in stems}
    lines += [_field_line(found) for found in report.fields if not missing.get(found.field, "").startswith(ONLY_IN)]
    lines += _stem_lines({name: note for name, note in missing.items() if note.startswith(ONLY_IN)})
    lines.append(f"{'equal' if report.equal else 'different'}: {format_count(report.matched, 'record')} in both")
    return lines


def _target_of(field: str) -> str:
    """The target that a field of a record belongs to; further targets have its name."""
    return _FIELDS_OF_STEM.get(field, field.removeprefix("more."))


def _stem_lines(missing: Mapping[str, str]) -> list[str]:
    """One line per store for the fields that only the other store has, because its own come from the stem."""
    lines = []
    for holder, other in (("A", "B"), ("B", "A")):
        names = sorted(name for name, note in missing.items() if note == f"{ONLY_IN}{holder}")
        if names:
            ignored = " ".join(f"--ignore {name}" for name in names)
            lines.append(
                f"not compared, stored only in {holder}: {', '.join(names)}; with {other}, training takes them from "
                f"the teacher's stem. To compare the rest alone: {ignored}"
            )
    return lines


def _field_line(found: "FieldDifference") -> str:
    numbers = "" if found.max_abs is None else f", max abs {found.max_abs:.3g}"
    numbers += "" if found.relative_l2 is None else f", relative L2 {found.relative_l2:.3g}"
    judged = f"{found.beyond} beyond the tolerance" if found.beyond else "all within the tolerance"
    note = f" ({found.note})" if found.note else ""
    return (
        f"{found.field}: differs in {found.records} records, {judged}{numbers}{note}; "
        f"{'largest' if found.max_abs else 'first'} at index {found.worst.index}"
    )
