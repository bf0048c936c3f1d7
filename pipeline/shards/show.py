"""`alignkd shards show`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console.errors import clean_errors, fail
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.picture_file import SHARDS_SHOW, is_drawn_by
from alignkd.pipeline.console.printing import json_option, print_json
from alignkd.pipeline.shards.options import STORE, find_record, images_option, record_options, tower_options

if TYPE_CHECKING:
    from alignkd.pipeline.shards.view.attention.computed import StemLayers
    from alignkd.pipeline.shards.view.pieces import Pieces
    from alignkd.storage.record.record import Record
    from alignkd.storage.schema.manifest import Manifest

FILE = click.Path(path_type=Path)


@click.command()
@STORE
@record_options
@click.option("--tokenizer", type=FILE, help="A tokenizer.model, if the store has none.")
@click.option("--png", type=FILE, help=f"Draw the image and the attention of the text to this file. {REPLACES}")
@images_option
@click.option("--layer", type=click.IntRange(min=0), help="With --png: a decoder layer; by default the store's first.")
@click.option("--head", default="mean", show_default=True, help="With --png: number of a head, or mean.")
@click.option("--token", help="With --png: position or piece of a text query; by default the mean over queries.")
@tower_options
@force_option
@json_option
@clean_errors
def show(
    store: Path | str,
    sample_id: str | None,
    key: str | None,
    index: int | None,
    tokenizer: Path | None,
    png: Path | None,
    images: Path | None,
    layer: int | None,
    head: str,
    token: str | None,
    checkpoint: str | None,
    vision_config: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Show one record of STORE.

    Shows the conversation, tokens, positions, targets, and the teacher's most probable tokens at each position.
    Without --id, --key or --index it shows the stored sample that comes first in the data set. --png computes
    attention that is not stored from the teacher's stem.

    Example: alignkd shards show runs/store --index 0 --png attention.png --images images
    """
    from alignkd.pipeline.shards.view.attention.computed import StemLayers
    from alignkd.pipeline.shards.view.attention.layer_attention import chosen_layer
    from alignkd.pipeline.shards.view.page import page
    from alignkd.pipeline.shards.view.pieces import open_pieces
    from alignkd.pipeline.shards.view.record_view import summary
    from alignkd.pipeline.shards.view.teacher_view import why_no_probabilities
    from alignkd.storage.read.logprobs import open_lm_head
    from alignkd.storage.read.store import StoreReader

    if png is not None:
        reads = (images, tokenizer, checkpoint, vision_config)
        claim_file("--png", png, is_drawn_by(SHARDS_SHOW), reads=reads, closed=[store], force=force)
    reader = StoreReader(store, allow_incomplete=True)
    if png is not None:
        chosen_layer(reader.manifest, layer)
    if sample_id is None and key is None and index is None:
        index = int(reader.dataset_index.min()) if len(reader) else 0
    record = find_record(reader, sample_id=sample_id, key=key, index=index)
    pieces, lm_head = open_pieces(reader, tokenizer), open_lm_head(reader.files, reader.manifest)
    if png is not None:
        stem = StemLayers(reader, checkpoint, vision_config)
        _draw(record, reader.manifest, pieces, png, stem, images=images, layer=layer, head=head, token=token)
    seen = summary(record, reader.manifest, pieces, lm_head)
    if as_json:
        print_json(seen | ({} if png is None else {"png": str(png)}))
        return
    click.echo(page(seen, why_no_probabilities(record, lm_head)))
    if png is not None:
        click.echo(f"wrote {png}")


def _draw(
    record: "Record",
    manifest: "Manifest",
    pieces: "Pieces",
    png: Path,
    stem: "StemLayers",
    *,
    images: Path | None,
    layer: int | None,
    head: str,
    token: str | None,
) -> None:
    from alignkd.pipeline.shards.view.attention.image_files import image_files, image_folder
    from alignkd.pipeline.shards.view.attention.layer_attention import chosen_layer, stored_layer
    from alignkd.pipeline.shards.view.attention.picture import draw_attention

    if head != "mean" and not re.fullmatch(r"[0-9]{1,6}", head):
        raise click.UsageError(f"--head is {head!r}, expected a number or mean")
    if not record.has_image:
        fail(f"sample {record.id!r} (index {record.index}) has no image to draw; choose another record")
    folder, source = image_folder(manifest, record, images), chosen_layer(manifest, layer)
    files = image_files(record, folder)
    attention = stem.layer(record, folder, source.layer) if source.stored is None else stored_layer(record, source)
    number = None if head == "mean" else int(head)
    draw_attention(record, manifest, pieces, files, png, attention=attention, head=number, token=token)
