"""`alignkd data show`: one sample of a data set, where it is, and what a model gets of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tqdm import tqdm

from alignkd.pipeline.console.printing import format_bytes
from alignkd.pipeline.data.answers import generated_text
from alignkd.pipeline.data.stats.figures import Piece, RenderedSample
from alignkd.pipeline.data.stats.rendered import pieces_of
from alignkd.pipeline.data.stats.report import rendered_lines
from alignkd.pipeline.data.stats.scan import held, image_bytes, tokenized
from alignkd.vlm.data.entries.answers.missing import UNANSWERED
from alignkd.vlm.data.entries.images import extension_of
from alignkd.vlm.data.entries.keys import keys_not_read
from alignkd.vlm.data.formats.source import EntrySource
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Generated, Turn
from alignkd.vlm.errors import InputError, SampleError, one_line
from alignkd.vlm.inputs.examples import Preparation, Tokens
from alignkd.vlm.inputs.image_file import decode_image


@dataclass(frozen=True, kw_only=True)
class ShownTurn:
    """A turn.

    Attributes:
        trained: False for an answer that is not supervised.
        generated: how a model wrote it; None for other turns.
    """

    speaker: str
    value: str
    trained: bool
    generated: Generated | None


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image of the sample.

    Attributes:
        in_data_file: whether the data file holds it.
        num_bytes: size of its file; None if it was not read.
        format: extension of its format, such as `png`; empty if it is not known.
        width, height: in pixels; None if they are not known.
        problem: why it cannot be used, or None.
    """

    name: str
    in_data_file: bool
    num_bytes: int | None = None
    format: str = ""
    width: int | None = None
    height: int | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShownTokens:
    """Numbers of tokens of a sample: `total` is `text` and `vision`; `supervised` ones are those that are learnt."""

    total: int
    text: int
    vision: int
    supervised: int


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """All of a sample.

    Attributes:
        place: file, and place in it.
        problem: why the sample is unusable, or None.
        keys_not_read: keys of the entry without an effect.
        tokens: None without a model, and for a sample whose text is unusable.
        pieces: the text that the model gets; empty where `tokens` is None.
    """

    file: str
    place: str
    index: int
    id: str
    problem: str | None
    turns: tuple[ShownTurn, ...]
    images: tuple[ShownImage, ...]
    keys_not_read: tuple[str, ...]
    tokens: ShownTokens | None
    pieces: tuple[Piece, ...]


def index_of_id(source: EntrySource, sample_id: str) -> int:
    """The index of the first sample with this id.

    Raises:
        InputError: there is none.
    """
    for sample in tqdm(source, total=len(source), desc="look for id", unit="sample", leave=False, disable=None):
        if sample.id == sample_id:
            return sample.index
    raise InputError(f"{source.path}: none of {len(source)} samples has the id {sample_id!r}; give --index")


def shown_sample(source: EntrySource, index: int, builder: Preparation | None) -> ShownSample:
    """Everything about a sample.

    Args:
        builder: of the model whose prompt is shown; None for no prompt.

    Raises:
        InputError: no such index.
    """
    if index >= len(source):
        raise InputError(f"{source.path}: no sample {index}; it has {len(source)}, counted from 0")
    sample, entry = source.sample_and_entry(index)
    images = tuple(_image(sample, own, builder) for own in range(len(sample.images)))
    tokens, problem = _tokens(sample, builder)
    return ShownSample(
        file=str(source.path),
        place=source.where(index),
        index=index,
        id=sample.id,
        problem=problem or next((image.problem for image in images if image.problem), None),
        turns=tuple(map(_turn, sample.turns)),
        images=images,
        keys_not_read=tuple(keys_not_read(entry, source.data.answers)),
        tokens=None if tokens is None else _counts(tokens),
        pieces=() if tokens is None or builder is None else pieces_of(builder, tokens),
    )


def _tokens(sample: Sample, builder: Preparation | None) -> tuple[Tokens | None, str | None]:
    """The tokens, or None; and why the text is unusable, or None."""
    if sample.problem is not None or builder is None:
        return None, sample.problem
    try:
        return tokenized(builder, sample), None
    except SampleError as error:
        return None, str(error)


def _turn(turn: Turn) -> ShownTurn:
    return ShownTurn(speaker=turn.speaker, value=turn.value, trained=turn.trained, generated=turn.generated)


def _image(sample: Sample, own: int, builder: Preparation | None) -> ShownImage:
    name, in_data_file = sample.images[own], held(sample, own) is not None
    if not _is_looked_at(sample) or (sample.folder is None and not in_data_file):
        return ShownImage(name=name, in_data_file=in_data_file)
    try:
        content = image_bytes(sample, own)
    except SampleError as error:
        return ShownImage(name=name, in_data_file=in_data_file, problem=str(error))
    found = ShownImage(name=name, in_data_file=in_data_file, num_bytes=len(content), format=extension_of(content))
    try:
        decoded = decode_image(content)
        if builder is not None:
            builder.check_image(decoded)
    except SampleError as error:
        return replace(found, problem=f"{name}: {error}")
    return replace(found, width=decoded.width, height=decoded.height)


def _is_looked_at(sample: Sample) -> bool:
    return sample.problem is None or sample.unanswered


def _counts(tokens: Tokens) -> ShownTokens:
    positions = tokens.positions
    return ShownTokens(
        total=positions.length,
        text=len(positions.text_positions),
        vision=len(positions.vision_positions),
        supervised=len(positions.supervised_positions),
    )


def show_lines(sample: ShownSample) -> Iterator[str]:
    """A sample for the terminal."""
    yield sample.place
    yield f"sample {sample.id!r} (index {sample.index} of {sample.file})"
    if sample.problem is not None:
        yield f"unusable: {one_line(sample.problem)}"
    if sample.keys_not_read:
        yield f"keys not read: {', '.join(map(one_line, sample.keys_not_read))}"
    for number, image in enumerate(sample.images, 1):
        yield f"image {number}: {_described(image, is_usable=sample.problem in (None, UNANSWERED))}"
    for number, turn in enumerate(sample.turns):
        yield f"turn {number}, {_heading(turn)}:"
        yield from (f"  {line}".rstrip() for line in turn.value.split("\n"))
    if sample.tokens is not None:
        rendered = RenderedSample(file=sample.file, index=sample.index, id=sample.id, pieces=sample.pieces)
        yield from rendered_lines(rendered)
        counts = sample.tokens
        yield (
            f"{counts.total:,} tokens: {counts.text:,} of text, {counts.vision:,} of vision; "
            f"{counts.supervised:,} supervised"
        )


def _heading(turn: ShownTurn) -> str:
    notes = [] if turn.trained else ["not trained on"]
    notes += [] if turn.generated is None else [generated_text(turn.generated)]
    return f"{turn.speaker} ({'; '.join(notes)})" if notes else turn.speaker


def _described(image: ShownImage, *, is_usable: bool) -> str:
    parts = [one_line(image.name), "in the data file" if image.in_data_file else ""]
    if image.num_bytes is not None:
        parts.append(format_bytes(image.num_bytes))
        parts.append(image.format)
    elif image.problem is None:
        parts.append("not read (no --images)" if is_usable else "not read")
    if image.width is not None:
        parts.append(f"{image.width} x {image.height} pixels")
    return ", ".join(part for part in (*parts, "unusable" if image.problem else "") if part)
