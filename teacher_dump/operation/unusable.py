"""Messages about unusable samples."""

from collections.abc import Sequence

import torch

from alignkd.teacher_dump.preparation import DoesNotFitError, Prepared, Unusable


def why_none(unusable: Sequence[tuple[int, str, str]]) -> str:
    """Why no sample is usable: the reason of all, or of the first (index, id, reason)."""
    _, sample_id, reason = unusable[0]
    is_one = len(unusable) > 1 and all(other == reason for _, _, other in unusable)
    return f"all for one reason: {reason}" if is_one else f"the first ({sample_id!r}): {reason}"


def does_not_fit(prepared: Prepared, device: torch.device) -> Unusable:
    """A sample that was alone in a batch when memory ran out."""
    reason = DoesNotFitError(
        f"{prepared.length} tokens do not fit the memory of {device}, even alone; free it or use a larger device"
    )
    return Unusable(place=prepared.place, sample=prepared.sample, reason=reason)
