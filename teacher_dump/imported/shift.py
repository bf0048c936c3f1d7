"""Whether a file's distributions belong to its tokens or to the tokens after them: found out on a few samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from alignkd.teacher_dump.imported.alignment import ShiftCounts, supervised_rows
from alignkd.teacher_dump.imported.formats.registry import Alignment, Format
from alignkd.teacher_dump.imported.kept import Kept, logits_of
from alignkd.teacher_dump.imported.places import Decode
from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.teacher_dump.preparation import Prepared
from alignkd.vlm.errors import InputError, SampleError

PROBED = 64
# Row of a sample, or SampleError.
FindRow = Callable[[Prepared], ForeignRow]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a few samples show.

    Attributes:
        alignment: the alignment to use.
        notice: a line for the user, or None.
    """

    alignment: Alignment
    notice: str | None = None


def probe(
    samples: Sequence[Prepared],
    find: FindRow,
    decode: Decode,
    *,
    format: Format,
    kept: Kept,
    given: Alignment | None,
    where: object,
) -> Probe:
    """The alignment of the files.

    Args:
        samples: samples whose rows are looked at.
        given: the user's choice, which is not checked.
        where: the files, for messages.

    Raises:
        InputError: no sample fits its row, the distributions are shifted, or do not show their alignment.
    """
    counts, fitting = ShiftCounts(), 0
    errors: list[tuple[str, SampleError]] = []
    for prepared, row in _rows(samples, find, errors):
        for shift in shifts_to_try(format, given):
            try:
                chosen = supervised_rows(row, prepared.example, decode, shift=shift)
                counts.add(row, chosen, prepared.example.positions.next_labels, shift)
                logits_of(row, chosen, prepared.example.positions.next_labels, kept)
            except SampleError as error:
                errors.append((prepared.sample.id, error))
                continue
            fitting += 1
            break
    if given is None and format.fixed_alignment and _shifted(counts) is not None:
        raise InputError(
            f"{where}: distributions are shifted by one position: {_shown(counts)}; correct the file, or give "
            "--alignment token or next to skip this check"
        )
    if not fitting:
        reason = f"the first ({errors[0][0]!r}): {errors[0][1]}" if errors else "none of them could be prepared"
        raise InputError(f"{where}: none of {len(samples)} samples fits its row, {reason}")
    if given is not None or format.fixed_alignment:
        return Probe(alignment=given or nominal_alignment(format))
    return _found_out(counts, where)


def nominal_alignment(format: Format) -> Alignment:
    """The alignment that a format's reader assumes."""
    return "next" if format.name == "distillkit" else "token"


def shift_of(format: Format, alignment: Alignment) -> int:
    """What is added to `ForeignRow.predicts` for an alignment; 0 for that of the format's reader."""
    return {"token": 0, "next": 1}[alignment] - {"token": 0, "next": 1}[nominal_alignment(format)]


def shifts_to_try(format: Format, given: Alignment | None) -> tuple[int, ...]:
    """Shifts under which a row without token ids may fit its sample."""
    if given is not None:
        return (shift_of(format, given),)
    return (0,) if format.fixed_alignment else (0, 1)


def _rows(
    samples: Sequence[Prepared], find: FindRow, errors: list[tuple[str, SampleError]]
) -> Iterator[tuple[Prepared, ForeignRow]]:
    for prepared in samples:
        try:
            yield prepared, find(prepared)
        except SampleError as error:
            errors.append((prepared.sample.id, error))


def _found_out(counts: ShiftCounts, where: object) -> Probe:
    """The alignment of files of which both occur, whose reader assumes `token`."""
    if _shifted(counts) == "before":
        return Probe(alignment="next", notice=f"distributions are in the row before their token: {_shown(counts)}")
    if _shifted(counts) is None and counts.clearly_more(counts.own, counts.before):
        return Probe(alignment="token", notice=f"distributions are in the row of their token: {_shown(counts)}")
    raise InputError(
        f"{where}: does not show whose its distributions are: {_shown(counts)}; give --alignment token or next"
    )


def _shifted(counts: ShiftCounts) -> str | None:
    """Whether tokens are clearly more often among the entries of the distribution `before` or `after` their own."""
    if counts.clearly_more(counts.before, max(counts.own, counts.after)):
        return "before"
    return "after" if counts.clearly_more(counts.after, max(counts.own, counts.before)) else None


def _shown(counts: ShiftCounts) -> str:
    return (
        f"of {counts.positions} tokens {counts.own} are among the entries of their own distribution, {counts.before} "
        f"of the one before and {counts.after} of the one after"
    )
