"""`alignkd shards gc` and `alignkd shards index`: repair a store after a crash or a lost file."""

import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import format_bytes, json_option, print_json, print_note
from alignkd.pipeline.shards.options import STORE, progress_bar

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Age(click.ParamType[float]):
    """`90s`, `30m`, `12h` or `7d` in seconds."""

    name = "age"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r}, expected a number and s, m, h or d, such as 12h", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


@click.command()
@STORE
@click.option("--older-than", type=Age(), help="Remove only older files; 12h, 7d.  [default: 1d in a bucket]")
@click.option("--dry-run", is_flag=True, help="List the files and remove nothing.")
@json_option
@clean_errors
def gc(store: Path | str, older_than: float | None, dry_run: bool, as_json: bool) -> None:
    """Remove files that dead writers left in STORE.

    These are temporary files and shard folders without a commit record. Files that desktops, file servers and editors
    leave in every folder are removed too (.DS_Store, ._*, Thumbs.db, .nfs*, *~ and the like). Files of a live writer
    and committed shards are never touched, nor is the index of `browse` (.browse). Every removed file is listed.

    Example: alignkd shards gc runs/store --dry-run
    """
    from alignkd.storage.tools.gc import collect_garbage

    leftovers = collect_garbage(store, older_than=older_than, dry_run=dry_run)
    removed = [left for left in leftovers if left.state in ("removed", "found")]
    freed = sum(left.num_bytes for left in removed)
    if as_json:
        shown = [asdict(left) for left in leftovers]
        print_json({"store": str(store), "dry_run": dry_run, "bytes": freed, "leftovers": shown})
        return
    for left in leftovers:
        click.echo(f"{left.state:<8} {left.kind:<10} {format_bytes(left.num_bytes):>10}  {left.path}")
    verb = "would be removed" if dry_run else "removed"
    click.echo(f"{store}: {len(removed)} leftovers {verb}, {format_bytes(freed)}; {len(leftovers) - len(removed)} kept")


@click.command()
@STORE
@click.option("--rebuild", is_flag=True, help="Write missing and damaged indexes; without it only check.")
@json_option
@clean_errors
def index(store: Path | str, rebuild: bool, as_json: bool) -> None:
    """Check or rebuild the tar indexes of STORE.

    The index of every tar of a webdataset store is compared with an index made from the tar. A rebuilt index must have
    the sha256 in the commit record, which proves that the tar is the committed one; otherwise it is not written, and
    the shard is named.

    Exits with 1 if an index is wrong at the end.

    Example: alignkd shards index --rebuild runs/store
    """
    from alignkd.storage.schema.commit_record import committed_shards
    from alignkd.storage.tools.index_rebuild import rebuild_indexes

    total = len(committed_shards(store)) if isinstance(store, Path) else 0
    with progress_bar("index", total, "shard") as done:
        states = rebuild_indexes(store, write=rebuild, on_shard=lambda shard: done(1))
    counts = Counter(state.state for state in states)
    sound = counts["sound"] + counts["rebuilt"] == len(states)
    if as_json:
        print_json({"store": str(store), "ok": sound, **counts, "shards": [asdict(state) for state in states]})
    else:
        for state in states:
            if state.message:
                print_note(f"shard {state.shard} {state.state}: {state.message}")
        step = "; run with --rebuild" if counts["repairable"] else ""
        shown = ", ".join(f"{number} {name}" for name, number in counts.items()) or "no shards"
        click.echo(f"{store}: indexes made from the tars and compared with the committed sha256: {shown}{step}")
    sys.exit(0 if sound else 1)
