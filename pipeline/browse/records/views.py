"""What the pages of a store's records show; each value equals the one that the store holds."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from alignkd.pipeline.browse.records.attention import Attention, attention_of
from alignkd.pipeline.browse.records.distance import Known, known
from alignkd.pipeline.browse.records.images import RecordImages
from alignkd.pipeline.browse.records.page import ImageView, LayerView, RecordPage
from alignkd.pipeline.browse.records.predictions import predictions_of
from alignkd.pipeline.browse.records.student import StudentPage, StudentViews
from alignkd.pipeline.browse.records.tokens import tokens_of
from alignkd.pipeline.shards.view.advantage_view import advantage_figures
from alignkd.pipeline.shards.view.attention.computed import StemLayers
from alignkd.pipeline.shards.view.attention.layer_attention import (
    LayerAttention,
    chosen_layer,
    layer_sources,
    stored_layer,
)
from alignkd.pipeline.shards.view.attention.picture import attention_png
from alignkd.pipeline.shards.view.pieces import Pieces, open_pieces
from alignkd.pipeline.shards.view.sequence_view import sequence_figures
from alignkd.pipeline.shards.view.teacher_view import entries_of, shown_distribution, why_no_probabilities
from alignkd.storage.read.checked_record import checked_record
from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.read.logprobs import open_lm_head
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record, SampledLogits
from alignkd.vlm.errors import InputError

# records that are kept in memory
KEPT = 8


class RecordViews:
    """The records of a store for pages. Threads may share it.

    Args:
        reader: the store.
        images: folder of the images, where the store does not contain them; None: the one that the dump used.
        tokenizer: a tokenizer file, where the store has none.
        checkpoint: folder or hub id whose vision tower is used where attention is not stored; None: the teacher that
            the dump used.
        vision_config: folder with the `config.json` of that tower, if the checkpoint does not have it.
        student: folder or hub id of a student to show beside the teacher.
        student_vision_config: as `vision_config`, of the student.

    Raises:
        InputError: the tokenizer is not the teacher's.
    """

    def __init__(
        self,
        reader: StoreReader,
        *,
        images: Path | None = None,
        tokenizer: Path | None = None,
        checkpoint: Path | str | None = None,
        vision_config: Path | None = None,
        student: Path | str | None = None,
        student_vision_config: Path | None = None,
    ) -> None:
        self.reader, self._images = reader, RecordImages(reader, images)
        # the same record is read again for every token that is clicked
        self._read = lru_cache(KEPT)(lambda position: checked_record(reader, position))
        self.pieces: Pieces = open_pieces(reader, tokenizer)
        self._stem = StemLayers(reader, checkpoint, vision_config)
        self._student = None
        if student is not None:
            self._student = StudentViews(reader, self.pieces, student, student_vision_config)

    @property
    def has_student(self) -> bool:
        """Whether there is a student to show."""
        return self._student is not None

    def record_page(self, position: int) -> RecordPage:
        """The page of the record at a position of the reader.

        Raises:
            IndexError: no such position. CorruptStoreError: the record is damaged.
        """
        record = self._read(position)
        turns = tuple(dict(turn) for turn in record.conversations)
        sequence, advantage = sequence_figures(record), advantage_figures(record)
        predictions = predictions_of(record, self.reader.manifest, self.pieces, self._lm_head)
        images = self._images.views(record)
        layers, why = self._layers(record, images)
        return RecordPage(
            position=position,
            index=record.index,
            key=record.key,
            id=record.id,
            source=self.reader.sources[int(self.reader.source_of[position])],
            turns=turns,
            sequence_length=record.sequence_length,
            tokens=tuple(tokens_of(record, self.pieces, predictions)),
            images=tuple(images),
            layers=tuple(layers),
            no_attention=why,
            no_predictions=why_no_probabilities(record, self._lm_head),
            is_estimate=isinstance(record.logits, SampledLogits),
            perplexity=None if sequence is None else sequence["perplexity"],
            advantage=None if advantage is None else advantage["mean"],
        )

    def attention(
        self,
        position: int,
        *,
        layer: int | None = None,
        head: int | None = None,
        query: int | None = None,
        student: bool = False,
    ) -> Attention:
        """The attention of a record's text to its images.

        Args:
            layer: number of a decoder layer; None for the first that there is.
            head: number of the head; None for the mean over heads.
            query: position of a text query; None for the mean over queries.
            student: the student's attention in place of the teacher's.

        Raises:
            InputError: no such layer, head or query, the record has no image, or something is missing to compute it.
            IndexError, StoreError: as `record_page`.
        """
        record = self._read(position)
        found = self.layer(position, layer, student=student)
        count = self.reader.manifest.shapes.vision_top_tokens
        return attention_of(record, found, self._images.grids(record), head=head, query=query, count=count)

    def heads(self, position: int, *, layer: int | None = None, query: int | None = None) -> list[Attention]:
        """`attention` of each head of a layer; arguments and errors as there."""
        record, found = self._read(position), self.layer(position, layer)
        grids, count = self._images.grids(record), self.reader.manifest.shapes.vision_top_tokens
        return [
            attention_of(record, found, grids, head=head, query=query, count=count)
            for head in range(len(found.values_HQP))
        ]

    def image_png(self, position: int, number: int) -> bytes:
        """An image of a record as the bytes of a PNG, scaled down if it is large.

        Args:
            number: number of the image in the record, from 0.

        Raises:
            IndexError: no such record or image.
            SampleError: the file is not at hand, or is not the image that the teacher saw.
            CorruptStoreError: as `record_page`.
        """
        return self._images.png(self._read(position), number)

    def view_png(
        self,
        position: int,
        *,
        layer: int | None = None,
        head: int | None = None,
        query: int | None = None,
        student: bool = False,
    ) -> bytes:
        """The picture of `alignkd shards show --png` as bytes; an image that is not at hand is left out.

        Args and errors: as `attention`.
        """
        record = self._read(position)
        found = self.layer(position, layer, student=student)
        files = self._images.files_at_hand(record)
        # a position, never a piece that consists of these digits
        token = None if query is None else f"@{query}"
        return attention_png(record, self.reader.manifest, self.pieces, files, attention=found, head=head, token=token)

    def student_page(self, position: int) -> StudentPage:
        """Attention and predictions of the student for a record; its first call loads the model.

        Raises:
            InputError: there is no student, it cannot be used, or an image is not at hand.
            IndexError, StoreError: as `record_page`.
        """
        record = self._read(position)
        return self._given_student().page(record, self._images.files(record))

    def known_tokens(self, position: int, *, student: bool = False) -> list[Known]:
        """The known tokens of each supervised position with their probabilities; empty if the store has none.

        Args:
            student: the student's in place of the teacher's.

        Raises:
            InputError, IndexError, StoreError: as `student_page`.
        """
        record = self._read(position)
        if student:
            return self._given_student().known_tokens(record, self._images.files(record))
        found = shown_distribution(record, self.reader.manifest, self._lm_head)
        return [] if found is None else [known(ids, probs) for ids, probs, _ in entries_of(found)]

    def layer(self, position: int, layer: int | None = None, *, student: bool = False) -> LayerAttention:
        """The attention of all heads and queries of a layer of a record; arguments and errors as `attention`."""
        record = self._read(position)
        if not record.has_image:
            raise InputError(f"sample {record.id!r} (index {record.index}) has no image")
        if student:
            return self._given_student().layer(record, self._images.files(record), layer)
        source = chosen_layer(self.reader.manifest, layer)
        if source.stored is not None:
            return stored_layer(record, source)
        return self._stem.layer(record, self._images.folder(record), source.layer)

    def _given_student(self) -> StudentViews:
        if self._student is None:
            raise InputError("no student was given; name its checkpoint by --student")
        return self._student

    @cached_property
    def _lm_head(self) -> LmHead | None:
        return open_lm_head(self.reader.files, self.reader.manifest)

    def _layers(self, record: Record, images: Sequence[ImageView]) -> tuple[list[LayerView], str | None]:
        """The layers that can be shown, and why there are none."""
        if not record.has_image:
            return [], "the record has no image"
        sources = layer_sources(self.reader.manifest).values()
        missing = next((image.missing for image in images if image.missing is not None), None)
        why = None if all(at.stored for at in sources) else missing or self._stem.why_not()
        layers = [
            LayerView(layer=at.layer, heads=at.heads, source="stem" if at.stored is None else "stored")
            for at in sources
            if at.stored is not None or why is None
        ]
        if not sources:
            try:
                chosen_layer(self.reader.manifest, None)
            except InputError as error:
                why = str(error)
        return layers, None if layers else why
