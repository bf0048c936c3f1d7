"""The images of records: their files, sizes and grids of vision tokens, and their PNGs."""

import io
from pathlib import Path

from PIL import Image

from alignkd.pipeline.browse.records.page import ImageView
from alignkd.pipeline.shards.view.attention.extent import extent_of
from alignkd.pipeline.shards.view.attention.grids import Grid, token_grids
from alignkd.pipeline.shards.view.attention.image_files import image_file, image_files, image_folder
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.image_file import decode_image, image_size

# longer sides are scaled down: a page needs no more pixels
MAX_SIDE = 2048
# records whose image sizes are kept, for a reader who looks at one token after the other
KEPT = 64

Size = tuple[int, int]


class RecordImages:
    """The images of a store's records. Threads may share it.

    Args:
        reader: the store.
        images: folder of the images, where the store does not contain them; None: the one that the dump used.
    """

    def __init__(self, reader: StoreReader, images: Path | None) -> None:
        self._reader, self._images = reader, images
        self._kept: dict[int, list[Size]] = {}

    def folder(self, record: Record) -> Path | None:
        """The folder of a record's images; None if it is not known."""
        return image_folder(self._reader.manifest, record, self._images)

    def files(self, record: Record) -> tuple[bytes, ...]:
        """The content of every image file.

        Raises:
            SampleError: one is not at hand, or is not the image that the teacher saw.
        """
        return image_files(record, self.folder(record))

    def files_at_hand(self, record: Record) -> list[bytes | None]:
        """The content of each image file; None where it is not at hand."""
        return [content for content, _ in self._looked_for(record)]

    def png(self, record: Record, number: int) -> bytes:
        """An image as the bytes of a PNG, its longer side at most `MAX_SIDE` pixels.

        Args:
            number: number of the image in the record, from 0.

        Raises:
            IndexError: no such image. SampleError: as `files`.
        """
        if not 0 <= number < record.num_images:
            raise IndexError(f"image {number} of a record with {record.num_images} images")
        image = decode_image(image_file(record, number, self.folder(record)))
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        content = io.BytesIO()
        image.save(content, "PNG")
        return content.getvalue()

    def grids(self, record: Record) -> list[Grid]:
        """Rows and columns of the vision tokens of each image."""
        sizes, _ = self._sizes(record)
        return self._grids(record, sizes)

    def views(self, record: Record) -> list[ImageView]:
        """What a page shows of each image."""
        sizes, missing = self._sizes(record)
        found, first = [], 0
        for number, (rows, columns) in enumerate(self._grids(record, sizes)):
            size, is_row = sizes[number], rows == 1 and columns > 1
            found.append(
                ImageView(
                    name=record.images[number],
                    sha256=record.image_sha256[number],
                    tokens=record.tokens_of_image[number],
                    rows=rows,
                    columns=columns,
                    first=first,
                    width=None if size is None else size[0],
                    height=None if size is None else size[1],
                    map_extent=None if size is None or is_row else extent_of(self._reader.manifest, *size),
                    missing=missing[number],
                )
            )
            first += record.tokens_of_image[number]
        return found

    def _sizes(self, record: Record) -> tuple[list[Size | None], list[str | None]]:
        """Width and height of each image, and why it is not at hand."""
        if record.index in self._kept:
            return [*self._kept[record.index]], [None] * record.num_images
        files = self._looked_for(record)
        sizes = [None if content is None else image_size(content) for content, _ in files]
        there = [size for size in sizes if size is not None]
        if len(there) == len(sizes):  # one that is missing may come back
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[record.index] = there
        return sizes, [why for _, why in files]

    def _grids(self, record: Record, sizes: list[Size | None]) -> list[Grid]:
        there = [size for size in sizes if size is not None]
        return token_grids(record, self._reader.manifest, there if len(there) == len(sizes) else None)

    def _looked_for(self, record: Record) -> list[tuple[bytes | None, str | None]]:
        """The content of each image file, or why it is not at hand."""
        found: list[tuple[bytes | None, str | None]] = []
        for number in range(record.num_images):
            try:
                content = image_file(record, number, self.folder(record))
                image_size(content)
                found.append((content, None))
            except SampleError as error:
                found.append((None, str(error)))
        return found
