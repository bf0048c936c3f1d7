"""Whether a stem gives the intended targets: from the store's teacher, for the student's own features."""

from collections.abc import Mapping

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.stem.file import StemInfo


def check_stem_of_teacher(stem: StemInfo, fingerprint: Mapping[str, str], store: str) -> None:
    """Refuse a stem of another teacher than the store's.

    Args:
        fingerprint: fingerprint in the store's manifest; its template and dtype are not compared.
        store: path of the store, for the message.

    Raises:
        InputError: one line with each differing entry and both values.
    """
    differing = [
        f"{name} is {value[:64]} in the stem, {fingerprint.get(name, 'not recorded')[:64]} in the store"
        for name, value in stem.fingerprint.items()
        if fingerprint.get(name) != value
    ]
    if differing:
        raise InputError(
            f"{stem.path}: not of the teacher that dumped store {store}: {'; '.join(differing)}; extract the "
            "stem of that teacher"
        )


def check_same_tower(stem: StemInfo, student: VisionLanguageModel) -> None:
    """Refuse a stem whose teacher has another vision tower than the student, in the student's dtype.

    Raises:
        InputError: names both hashes and what to do; or the student is of another architecture.
    """
    found_in = stem.design.tower_of_student(student)
    if found_in is None:
        raise InputError(
            f"{stem.path}: a stem of a teacher of the architecture {stem.design.name}, but the student is of another "
            "one; store attention, vision_top and vision_all (store.profile compact) instead of taking them from the "
            "stem"
        )
    dtype, found = found_in
    if (expected := stem.tower.get(dtype, "not recorded")) != found:
        raise InputError(
            f"{stem.path}: the teacher's vision tower has hash {expected} in {dtype}, the student's {found}; features "
            "of another tower would give wrong targets: store attention, vision_top and vision_all (store.profile "
            "compact) instead of taking them from the stem"
        )
