"""Arguments and options that several commands share, and the search for a record."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from alignkd.pipeline.console.checkpoint_options import vision_config_option
from alignkd.pipeline.console.errors import fail

if TYPE_CHECKING:
    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.record.record import Record

Command = TypeVar("Command", bound=Callable[..., Any])
MAX_INDICES = 8


class Location(click.ParamType[Path | str]):
    """A store: its folder becomes a path, a URL stays text."""

    name = "store"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        from alignkd.storage.files.location import as_location

        return as_location(value)


class LayoutChoice(click.Choice[str]):
    """One of the layouts of `storage/layouts/registry.py`, which is imported when the choice is used."""

    def __init__(self) -> None:
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]  # click sets an attribute
        from alignkd.storage.layouts.registry import layout_names

        return layout_names()


LOCATION = Location()
STORE = click.argument("store", type=LOCATION)


def record_options(command: Command) -> Command:
    """`--id`, `--key` and `--index`: one record of a store."""
    for option in (
        click.option("--index", type=int, help="Position of the sample in the data set."),
        click.option("--key", help="Content hash of the sample."),
        click.option("--id", "sample_id", help="The user's id of the sample."),
    ):
        command = option(command)
    return command


def images_option(command: Command) -> Command:
    """`--images`: the folder of the images."""
    text = "Folder of the images, if the store does not contain them; by default the one that the dump used."
    return click.option("--images", type=click.Path(path_type=Path), help=text)(command)


def tower_options(command: Command) -> Command:
    """`--checkpoint` and `--vision-config`: the vision tower with which a stem gives attention."""
    return click.option(
        "--checkpoint",
        help="Where attention is not stored: folder or hub id of the teacher, or of a student with its vision tower. "
        "Default: the teacher that the dump used.",
    )(vision_config_option(command))


def find_record(reader: "StoreReader", *, sample_id: str | None, key: str | None, index: int | None) -> "Record":
    """The record that the options name; if there is not exactly one, the command ends with the next step."""
    from alignkd.storage.read.checked_record import checked_record

    wanted = {"id": sample_id, "key": key, "index": index}
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise click.UsageError("name one record by --id, --key or --index")
    shown = " ".join(f"--{name} {value}" for name, value in given.items())
    found = reader.find(id=sample_id, key=key, index=index)
    if not found:
        listed = [entry for entry in reader.quarantined if entry.id == sample_id or entry.index == index]
        why = f"; the sample is unusable: {listed[0].reason}" if listed else "; `alignkd shards ls` lists the shards"
        fail(f"store {reader.path}: no record with {shown}{why}")
    if len(found) > 1:
        indices = ", ".join(str(int(reader.dataset_index[position])) for position in found[:MAX_INDICES])
        fail(f"store {reader.path}: {len(found)} records with {shown}; choose one with --index ({indices})")
    return checked_record(reader, found[0])


@contextmanager
def progress_bar(what: str, total: int, unit: str = "record") -> Iterator[Callable[[int], object]]:
    """Show a bar if stderr is a terminal; the block calls the given function with the number of units done."""
    if not sys.stderr.isatty():  # scripts need no bar and no import
        yield lambda done: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, disable=None) as bar:
        yield bar.update
