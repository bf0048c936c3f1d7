"""`alignkd shards centres`."""

from pathlib import Path

import click

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.printing import json_option, print_json
from alignkd.pipeline.shards.options import STORE, progress_bar

# names in the file, which `student_train/objective/centres.py` reads
TOKENS, CENTRES, COUNTS = "tokens", "centres", "counts"
# in its metadata: the fingerprint of the teacher's weights. It is the only entry, because safetensors writes several in
# any order, and a run that is resumed compares the file's checksum
TEACHER = "class_means_of"


@click.command()
@STORE
@click.option("--out", type=click.Path(path_type=Path), required=True, help=f"A .safetensors file. {REPLACES}")
@click.option(
    "--min-count",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Leave out tokens with fewer supervised positions.",
)
@click.option("--samples", type=click.IntRange(min=1), help="Read so many records, evenly spaced; by default all.")
@force_option
@json_option
@clean_errors
def centres(store: Path | str, out: Path, min_count: int, samples: int | None, force: bool, as_json: bool) -> None:
    """Write the teacher's class means of STORE to a file.

    The mean of the teacher's last hidden states before each token: the loss nd compares the student's states with their
    directions (train.centres). STORE must keep logits as hidden states; the student may be trained from another store
    of the same teacher.

    Example: alignkd shards centres runs/store --out centres.safetensors
    """
    from safetensors.numpy import save

    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.tools.centres import class_means

    claim_file("--out", out, is_ours, reads=(), closed=[store], force=force)
    reader = StoreReader(store, allow_incomplete=True)
    with progress_bar("read", min(len(reader), samples or len(reader))) as done:
        found = class_means(reader, min_count=min_count, max_records=samples, progress=done)
    tensors = {TOKENS: found.tokens, CENTRES: found.means, COUNTS: found.counts}
    write_whole(out, save(tensors, metadata={TEACHER: reader.manifest.fingerprint["weights"]}))
    figures = {
        "out": str(out),
        "records": found.records,
        "tokens": len(found.tokens),
        "positions": found.positions,
        "tokens_left_out": found.left_out,
        "positions_left_out": found.positions_left_out,
    }
    if as_json:
        print_json(figures)
        return
    click.echo(
        f"wrote {out}: {len(found.tokens):,} tokens, from {found.positions:,} positions of {found.records:,} records"
    )
    click.echo(
        f"left out: {found.left_out:,} tokens with fewer than {min_count} positions, which are "
        f"{found.positions_left_out / max(1, found.positions):.2%} of all positions; the loss nd is 0 there"
    )


def is_ours(path: Path) -> bool:
    """Whether `path` is a file that this command wrote."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return TEACHER in (file.metadata() or {})
    except (OSError, SafetensorError):  # not a safetensors file
        return False
