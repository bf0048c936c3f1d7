"""The figures of `alignkd data stats` as text for a terminal."""

from collections.abc import Iterator, Mapping, Sequence

from alignkd.pipeline.console.printing import format_count
from alignkd.pipeline.data.stats.figures import DataStats, RenderedSample, SourceStats
from alignkd.pipeline.data.stats.histogram import Histogram

MAX_SOURCES = 30
MAX_NAMES = 15
BAR_WIDTH = 50
NOT_CHECKED = "-"
CHECKS = {
    "no": "not checked (no --images, and none in the data files)",
    "opened": "only opened (--no-decode)",
    "decoded": "decoded",
}


def report_lines(stats: DataStats) -> Iterator[str]:
    """The tables of sources and of data sets, notices, unusable samples and the histogram."""
    yield from table_lines(stats)
    if len(stats.data_sets) > 1:
        yield ""
        yield from data_set_lines(stats)
    yield ""
    yield (
        f"{stats.num_images:,} distinct images {CHECKS[stats.images_checked]}; tokens are text + vision tokens with "
        f"template {stats.template}, over {stats.total.counted:,} samples whose text is usable"
    )
    if several := stats.total.several_images:
        yield f"{several:,} samples have several images"
    yield from _overlap_lines(stats)
    yield from _notice_lines(stats)
    yield from _unusable_lines(stats)
    yield ""
    yield from histogram_lines(stats.histogram, [limit.max_tokens for limit in stats.total.limits])
    if stats.rendered is not None:
        yield ""
        yield from rendered_lines(stats.rendered)
    for warning in stats.warnings:
        yield f"warning: {warning}"


def rendered_lines(sample: RenderedSample) -> list[str]:
    """The text of a sample, indented, supervised parts between `>>>` and `<<<`."""
    head = f"{sample.file}: sample {sample.id!r} (index {sample.index}) as the model gets it; >>>supervised<<<:"
    parts = [f">>>{piece.text}<<<" if piece.supervised else piece.text for piece in sample.pieces]
    return [head, *(f"  {line}".rstrip() for line in "".join(parts).split("\n"))]


def table_lines(stats: DataStats) -> list[str]:
    """One row per source data set, the largest first, and the total; sources beyond `MAX_SOURCES` share one row."""
    lines = _table("source", (*stats.sources[:MAX_SOURCES], stats.total))
    if hidden := stats.sources[MAX_SOURCES:]:
        samples = sum(source.samples for source in hidden)
        lines.insert(-1, f"({len(hidden):,} more sources with {samples:,} samples, see --json)")
    return lines


def data_set_lines(stats: DataStats) -> list[str]:
    """One row per data set, in the order given."""
    return _table("data set", stats.data_sets)


def _table(kind: str, found: Sequence[SourceStats]) -> list[str]:
    unanswered = any(source.unanswered for source in found)
    rows = [_cells(source, unanswered=unanswered) for source in found]
    header = _header(kind, [limit.max_tokens for limit in found[0].limits], unanswered=unanswered)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in (header, *rows))
    ]


def _header(kind: str, limits: Sequence[int], *, unanswered: bool) -> list[str]:
    fixed = [kind, "samples", "text only", "image missing", "image damaged", "label mask"]
    others = ["unanswered", "other"] if unanswered else ["other"]
    return [
        *fixed,
        *others,
        "mean",
        "median",
        "max",
        *(name for limit in limits for name in (f"> {limit}", f"kept {limit}")),
    ]


def _cells(source: SourceStats, *, unanswered: bool) -> list[str]:
    counts = [source.samples, source.text_only, source.image_missing, source.image_broken, source.label_mask]
    tokens = [source.mean_tokens, source.median_tokens, source.max_tokens]
    limits = [count for limit in source.limits for count in (limit.overlong, limit.kept)]
    others = [source.unanswered, source.other] if unanswered else [source.other]
    return [source.source, *map(_number, [*counts, *others, *tokens, *limits])]


def _number(value: float | None) -> str:
    if value is None:
        return NOT_CHECKED
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _overlap_lines(stats: DataStats) -> Iterator[str]:
    """Name overlong samples with a damaged image: they are in two columns, so the row does not add up."""
    for limit in stats.total.limits:
        both = (stats.total.image_broken or 0) - limit.image_broken
        if both:
            which = f"{both:,} samples with a damaged image are" if both > 1 else "1 sample with a damaged image is"
            yield f"{which} also longer than {limit.max_tokens}, and in both columns"


def _notice_lines(stats: DataStats) -> Iterator[str]:
    if stats.num_turned:
        yield (
            f"{stats.num_turned:,} images have an EXIF orientation other than 1; they are read as stored, not rotated "
            "(docs/inputs.md)"
        )
    if stats.generated is not None:
        yield from stats.generated.lines()
    if stats.questions:
        yield (
            f"{format_count(stats.questions, 'question')} without an answer in "
            f"{format_count(stats.total.unanswered, 'sample')}, which `alignkd generate` answers"
        )
    if stats.marks:
        yield f"kept as plain text in samples without an image: {counts_line(stats.marks)}"
    if stats.keys_not_read:
        yield f"keys not read: {counts_line(stats.keys_not_read)}"


def counts_line(found: Mapping[str, int]) -> str:
    """Names and counts; those beyond `MAX_NAMES` as their number."""
    shown = ", ".join(f"{name} {count:,}" for name, count in list(found.items())[:MAX_NAMES])
    return f"{shown}, and {len(found) - MAX_NAMES:,} more, see --json" if len(found) > MAX_NAMES else shown


def _unusable_lines(stats: DataStats) -> Iterator[str]:
    if stats.num_unusable > 1 and stats.num_unusable in stats.text_reasons.values():
        yield f"unusable: {stats.num_unusable:,} samples, all for one reason: {next(iter(stats.text_reasons))}"
        return
    for sample in stats.unusable:
        yield f"unusable: {sample.file}: sample {sample.id!r} (index {sample.index}): {sample.reason}"
    if (rest := stats.num_unusable - len(stats.unusable)) > 0:
        yield f"unusable: {rest:,} more" + (
            "" if stats.num_listed is not None else "; --list FILE.jsonl lists them all"
        )


def histogram_lines(histogram: Histogram, limits: Sequence[int]) -> Iterator[str]:
    """A bar per bin, and a line at each limit."""
    if not histogram.counts:
        yield "no sample has tokens to count"
        return
    bins = list(zip(histogram.edges[:-1], histogram.edges[1:], histogram.counts, strict=True))
    names = [f"{low + 1:,}-{high:,}" for low, high, _ in bins]
    width, digits, most = max(map(len, names)), len(f"{max(histogram.counts):,}"), max(histogram.counts)
    yield f"{'tokens'.rjust(width)}  {'samples'.rjust(digits)}"
    for name, (_, high, count) in zip(names, bins, strict=True):
        bar = "#" * -(-count * BAR_WIDTH // most)  # at least one mark where there is a sample
        yield f"{name.rjust(width)}  {f'{count:,}'.rjust(digits)}  {bar}".rstrip()
        if high in limits and high != histogram.edges[-1]:
            yield f"{'-' * width}  max_tokens {high:,}"
