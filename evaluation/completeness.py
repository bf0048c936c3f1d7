"""Whether there is exactly one answer to every question."""

from collections import Counter
from collections.abc import Hashable, Iterable

from alignkd.evaluation.answers import some
from alignkd.vlm.errors import InputError

_STEP = "generate them again, or score them as the original does with --as-original"


def incomplete_notes(expected: Iterable[Hashable], given: Iterable[Hashable], *, as_original: bool) -> list[str]:
    """Compare the questions with the answers.

    Args:
        expected: the key of every question.
        given: the key of every answer.
        as_original: whether incomplete answers are accepted.

    Returns:
        One line for questions without an answer, one for those with several, one for other answers.

    Raises:
        InputError: unless `as_original`, for questions without an answer, and for those with several.
    """
    wanted, found = Counter(iter(expected)), Counter(iter(given))  # of a mapping, its keys
    missing = list((wanted - found).elements())
    doubled = [key for key in (found - wanted) if key in wanted]
    others = [key for key in found if key not in wanted]
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {wanted.total()} questions have no answer ({some(missing)})")
    if doubled:
        problems.append(f"{len(doubled)} questions have more answers than they should ({some(doubled)})")
    if problems and not as_original:
        raise InputError(f"answers: {'; '.join(problems)}; {_STEP}")
    if others:
        problems.append(f"{len(others)} answers are to no question of the benchmark ({some(others)})")
    return problems


def count_note(found: int, published: int, what: str) -> list[str]:
    """A line if the benchmark in the folder has another size than the published one."""
    return [] if found == published else [f"{found} {what} instead of the published {published}"]
