"""`alignkd shards import`: other tools' files become a store."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.numbers import FiniteFloat
from alignkd.pipeline.console.printing import format_count, json_option, print_json, print_note
from alignkd.pipeline.shards.options import LOCATION, LayoutChoice

if TYPE_CHECKING:
    from alignkd.teacher_dump.imported.formats.polynomial import Compression
    from alignkd.teacher_dump.imported.job import ImportResult

COMPRESSION_FILE = "compression_config.yaml"
PATH = click.Path(path_type=Path)


@click.command("import")
@click.argument("files", metavar="FILE...", type=PATH, nargs=-1, required=True)
@click.option("--data", type=PATH, required=True, help="The conversations that the files belong to.")
@click.option("--images", type=PATH, help="Folder of the image paths in the data.")
@click.option("--checkpoint", required=True, help="Teacher or student: decides tokens and positions.")
@click.option("--template", help="Prompt template; by default that of the checkpoint.")
@click.option("--out", "store", type=LOCATION, required=True, help="The store to write, or to resume.")
@click.option("--format", type=click.Choice(["distillkit", "vllm", "axolotl"]), help="By default recognised.")
@click.option("--compression", type=PATH, help=f"DistillKit's {COMPRESSION_FILE}, if not beside the files.")
@click.option("--match", type=click.Choice(["id", "order", "tokens"]), help="How rows and samples are matched.")
@click.option("--alignment", type=click.Choice(["token", "next"]), help="Place of a distribution; not checked then.")
@click.option("--tail", type=click.Choice(["known", "unknown"]), help="Whether all probabilities sum to 1.")
@click.option("--temperature", type=FiniteFloat(1e-3, 1e3), default=1.0, help="Temperature of the files.")
@click.option("--top-k", type=click.IntRange(1), help="Tokens to keep at each position; by default all.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", help="Stored precision.")
@click.option("--backend", type=LayoutChoice(), default="zarr", help="Layout of the store.")
@click.option("--inputs", type=click.Choice(["reference", "embed"]), help="embed: store images; by default as needed.")
@click.option("--shard-size", type=click.IntRange(1), default=256, help="Samples per shard.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the order of writing.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longer samples are listed as unusable.")
@click.option("--max-errors", type=click.IntRange(0), help="Stop at more unusable samples.")
@click.option("--vision-config", type=PATH, help="Vision tower's folder, for MobileVLM.")
@click.option("--processor", type=click.Choice(["auto", "pil"]), default="auto", help="Image processor.")
@json_option
@clean_errors
def import_command(
    files: tuple[Path, ...], compression: Path | None, data: Path, images: Path | None, as_json: bool, **settings: Any
) -> None:
    """Write log-probabilities of another tool to a store.

    FILE is a parquet cache of DistillKit (or its folder), JSON of vLLM or of axolotl. The tokens of every sample must
    be those of the checkpoint; samples that differ are listed as unusable. The store holds logits only.

    You can stop the command at any time and run it again to resume. The formats: docs/import.md.

    Example: alignkd shards import scored.jsonl --data train.json --checkpoint student --out runs/store
    """
    with heavy_imports():
        from alignkd.pipeline.imported.run import run_import
        from alignkd.pipeline.runs.teacher.shards_report import (
            end_if_interrupted,
            ending_when_abandoned,
            listed_unusable,
        )
        from alignkd.teacher_dump.imported.job import ImportJob
        from alignkd.vlm.data.source import DataSet

    found = _expanded(files)
    job = ImportJob(
        files=found, data=DataSet(path=data, images=images), compression=_compression(compression, found), **settings
    )
    with ending_when_abandoned():
        result, interrupted_by = run_import(job)
    if as_json:
        print_json({"store": str(job.store), **asdict(result)})
    else:
        for line in listed_unusable(result.quarantined, more="see `alignkd shards ls STORE --unusable`"):
            print_note(line)
        click.echo(result_line(result))
    end_if_interrupted(interrupted_by)


def result_line(result: "ImportResult") -> str:
    """What a run did, and what the store contains now."""
    done = f"wrote {format_count(result.shards_written, 'shard')}" if result.shards_written else "nothing left to do"
    unused = f", {result.unused_rows} rows of the files belong to no sample" if result.unused_rows else ""
    return (
        f"{done}: {result.num_records} of {format_count(result.num_samples, 'sample')} in the store, "
        f"{len(result.quarantined)} unusable{unused}; {result.format}, matched by {result.match}, top {result.top_k}, "
        f"tail {result.tail}, {result.seconds:.1f} s"
    )


def _expanded(files: tuple[Path, ...]) -> tuple[Path, ...]:
    """The given files, and in place of a folder its parquet files."""
    from alignkd.vlm.errors import InputError

    found: list[Path] = []
    for path in files:
        inside = sorted(path.glob("*.parquet"), key=_by_number) if path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path}: is a folder without parquet files; give the files")
        found += inside
    return tuple(found)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """data_2 before data_10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _compression(given: Path | None, files: tuple[Path, ...]) -> "Compression | None":
    """The settings that packed DistillKit's files: the given file, or the one beside the first of them."""
    from pydantic import ValidationError

    from alignkd.pipeline.config.problems import problem_of
    from alignkd.pipeline.config.run_config import read_yaml, refusal
    from alignkd.teacher_dump.imported.formats.polynomial import Compression

    path = given or files[0].parent / COMPRESSION_FILE
    if given is None and not path.exists():
        return None
    try:
        return Compression.model_validate(read_yaml(path))
    except ValidationError as error:
        raise refusal(path, [problem_of(dict(item), Compression) for item in error.errors()]) from error
