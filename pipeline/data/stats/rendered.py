"""One sample of a data set as the model gets it, so that users see what is supervised before they pay for a dump."""

import numpy as np

from alignkd.pipeline.data.stats.figures import Piece, RenderedSample
from alignkd.pipeline.data.stats.scan import Scan, tokens_of
from alignkd.pipeline.data.stats.table import SampleTable
from alignkd.vlm.inputs.examples import Preparation, Tokens


def rendered_sample(scan: Scan, table: SampleTable) -> RenderedSample | None:
    """The first usable sample with an image, or without one if there is none; None without a usable sample."""
    usable = np.flatnonzero(table.counted)
    if not len(usable):
        return None
    with_image = usable[table.images_of[usable] > 0]
    number = int(with_image[0] if len(with_image) else usable[0])
    source, sample = scan.find(number)
    return RenderedSample(
        file=str(source.path),
        index=sample.index,
        id=sample.id,
        pieces=pieces_of(scan.builder, tokens_of(scan, sample)),
    )


def pieces_of(builder: Preparation, tokens: Tokens) -> tuple[Piece, ...]:
    """The text of a sample in supervised and other pieces, vision tokens as their number."""
    return tuple(Piece(text=text, supervised=supervised) for text, supervised in builder.marked(tokens))
