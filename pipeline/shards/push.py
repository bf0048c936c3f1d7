"""`alignkd shards push`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console.errors import clean_errors, fail
from alignkd.pipeline.console.printing import format_bytes, format_count, json_option, print_json, say
from alignkd.pipeline.shards.options import STORE, progress_bar

if TYPE_CHECKING:
    from alignkd.storage.tools.push.push import PushReport

MAX_NAMED = 10


@click.command()
@STORE
@click.argument("target", metavar="hf://datasets/ORG/NAME[/PATH]")
@click.option("--private", is_flag=True, help="Create the data set private.")
@click.option("--revision", help="Branch to push to; also @BRANCH in the URL.  [default: main]")
@click.option("--licence", "--license", "licence", metavar="ID", help="Licence of the card, such as cc-by-4.0.")
@click.option("--teacher", metavar="NAME", help="Name of the teacher for the card, such as its hub id.")
@click.option("--message", help="Message of the commits.")
@click.option("--replace-card", is_flag=True, help="Replace README.md although a person wrote or edited it.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent and the card; change nothing.")
@json_option
@clean_errors
def push(
    store: Path | str,
    target: str,
    private: bool,
    revision: str | None,
    licence: str | None,
    teacher: str | None,
    message: str | None,
    replace_card: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish STORE, a folder, as a data set of the Hugging Face hub.

    The data set is created if it does not exist. Only what it lacks is sent, so you can stop the command at any time
    and run it again to resume, and push a store again after it has grown. Readers see the old store or the whole new
    one. A dataset card is made from the manifest. Another store at the same place is refused.

    Example: alignkd shards push runs/store hf://datasets/my-org/my-store --private --licence cc-by-4.0
    """
    from alignkd.storage.tools.push.card import CardFacts
    from alignkd.storage.tools.push.push import PushOptions, push_store

    if not isinstance(store, Path):
        fail(f"store {store}: only a store in a folder is pushed; copy it to one first")
    options = PushOptions(
        private=private,
        message=message,
        facts=CardFacts(licence=licence, teacher=teacher),
        replace_card=replace_card,
        dry_run=dry_run,
    )
    url = _with_revision(target, revision)
    with progress_bar("push", _num_shards(store), "shard") as done:
        report = push_store(store, url, options, done)
    if as_json:
        print_json({"store": str(store), "target": url, "dry_run": dry_run, **asdict(report)})
        return
    _notes(store, report)
    click.echo(_line(url, report, dry_run))
    if dry_run:
        click.echo(f"\n{report.card_text}", nl=False)


def _with_revision(target: str, revision: str | None) -> str:
    from alignkd.storage.files.hub_location import HubLocation, parse_hub_location

    place = parse_hub_location(target)
    if revision is not None and place.revision not in (None, revision):
        raise click.UsageError(f"the URL names {place.revision!r}, --revision {revision!r}; give one of them")
    return parse_hub_location(
        HubLocation(repo=place.repo, prefix=place.prefix, revision=revision or place.revision).url
    ).url


def _num_shards(store: Path) -> int:
    from alignkd.storage.schema.commit_record import committed_shards

    return len(committed_shards(store))


def _notes(store: Path, report: "PushReport") -> None:
    """Notes on stderr, one line each."""
    if report.num_shards < report.planned_shards:
        say(
            f"note: {store} is unfinished, {report.num_shards} of {report.planned_shards} shards are committed; push "
            "again when it has more"
        )
    if report.embeds_images:
        say("note: the store embeds the image files; whoever can read the data set has them")
    if report.replaced:
        shown = ", ".join(map(str, report.replaced[:MAX_NAMED]))
        say(f"note: an earlier state of {format_count(len(report.replaced), 'shard')} is replaced: {shown}")
    if report.card == "kept":
        say("note: README.md was written or edited by a person and is kept; --replace-card replaces it")


def _line(url: str, report: "PushReport", dry_run: bool) -> str:
    commit = "" if report.commit is None or dry_run else f", commit {report.commit[:12]}"
    if not report.files and not report.shards and report.card != "written":
        return f"nothing left to do: {url} has all {format_count(report.num_shards, 'shard')}{commit}"
    verb = "would send" if dry_run else "sent"
    new = " (a new data set)" if report.created else ""
    card = "would be written, see below" if dry_run and report.card == "written" else report.card
    return (
        f"{verb} {format_count(len(report.shards), 'shard')} of {report.num_shards}, "
        f"{format_count(report.files, 'file')}, {format_bytes(report.num_bytes)} to {url}{new}; card "
        f"{card}{commit}"
    )
