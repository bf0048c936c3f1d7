"""Whether a student can use the stem of a teacher: whether they have the same vision tower."""

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint, ModelConfig
from alignkd.vlm.stem.designs import design_of, design_or_reason


def why_no_stem(teacher: ModelConfig, student: ModelConfig) -> str | None:
    """Why the student cannot use the teacher's stem, by their configurations alone, as a phrase; None if it can."""
    theirs, own = design_or_reason(teacher), design_or_reason(student)
    if isinstance(theirs, str):
        return theirs
    if isinstance(own, str) or own.name != theirs.name:
        return f"the student is of another architecture than the teacher, {theirs.name}"
    found, expected = own.tower_settings, theirs.tower_settings
    differing = (name for name in {**expected, **found} if found.get(name) != expected.get(name))
    name = next(differing, None)
    return None if name is None else f"{name} is {found.get(name)} in the student, {expected.get(name)} in the teacher"


def same_tower(teacher: Checkpoint, student: Checkpoint, dtype: str) -> tuple[bool | None, str]:
    """Whether two checkpoints, whose weights are on this machine, have the same tower in `dtype`; and the reason.

    Their configurations must allow it (`why_no_stem`). Of the weights only the towers are read. None if they cannot.
    """
    design = design_of(teacher)
    try:
        hashes = {design.tower_hashes(checkpoint, [dtype])[dtype] for checkpoint in (teacher, student)}
    except InputError as error:
        return None, f"the towers cannot be compared ({error})"
    if len(hashes) > 1:
        return False, f"the weights of the vision towers differ in {dtype}"
    return True, f"teacher and student share their vision tower (weights compared in {dtype})"
