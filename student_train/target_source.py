"""Whether a run takes a target from the store or from the teacher's stem: one rule for plan, checks and training."""

from typing import Literal

from alignkd.storage.codecs.settings import NOT_STORED, STEM

Source = Literal["stored", "stem"]


def target_source(codec: str, chosen: str | None, *, has_stem: bool) -> Source | None:
    """Where a target with this codec comes from; None if it comes from nowhere.

    Args:
        codec: the store's codec of the target: the name of a codec, `stem` or `none`.
        chosen: `train.targets` of it, or None to follow the store.
        has_stem: whether `train.stem` names a stem, which gives what the store lacks.
    """
    if chosen == STEM or (chosen is None and (codec == STEM or (codec in NOT_STORED and has_stem))):
        return "stem"
    return None if codec in NOT_STORED else "stored"
