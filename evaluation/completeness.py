"""Whether there is exactly one answer to every question."""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable

from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.listed import some

AS_ORIGINAL = "--as-original"


def incomplete_notes(
    expected: Iterable[Hashable], given: Iterable[Hashable], *, as_original: bool, missing_is_fatal: bool = False
) -> list[str]:
    """Compare the questions with the answers.

    Args:
        expected: the key of every question.
        given: the key of every answer.
        as_original: whether incomplete answers are accepted.
        missing_is_fatal: whether the original scorer fails if an answer is missing; then `as_original` does not help.

    Returns:
        One line for questions without an answer, one for those with several, one for other answers.

    Raises:
        AnswersError: no answer is to any of the questions; unless `as_original`, also for questions without an answer,
            and for those with several.
    """
    wanted, found = Counter(iter(expected)), Counter(iter(given))  # of a mapping, its keys
    missing = list((wanted - found).elements())
    doubled = [key for key in (found - wanted) if key in wanted]
    others = [key for key in found if key not in wanted]
    problems = []
    if not wanted.keys() & found.keys():
        raise AnswersError(
            f"no answer is to one of the {wanted.total()} questions ({some(list(wanted))}); "
            f"{_other_type(wanted, found) or 'give the answers to this benchmark'}"
        )
    if missing:
        problems.append(f"questions without an answer: {len(missing)} of {wanted.total()} ({some(missing)})")
    if doubled:
        problems.append(f"questions with several answers: {len(doubled)} ({some(doubled)})")
    if missing and missing_is_fatal:
        raise AnswersError(f"{problems[0]}; {_other_type(missing, others) or 'generate the missing answers'}")
    if problems and not as_original:
        raise AnswersError(
            f"{'; '.join(problems)}; "
            + (_other_type(missing, others) or f"generate all answers, or give {AS_ORIGINAL} for the original's number")
        )
    if others:
        problems.append(f"answers to other questions, not scored: {len(others)} ({some(others)})")
    return problems


def refuse_unknown(expected: Iterable[Hashable], given: Iterable[Hashable], place: str) -> None:
    """Refuse answers to questions that the benchmark does not have, where the original scorer fails on them.

    Args:
        place: the file that has the questions.
    """
    wanted = set(expected)
    others = [key for key in dict.fromkeys(given) if key not in wanted]
    if others:
        raise AnswersError(
            f"answers to questions that {place} does not have: {len(others)} ({some(others)}); "
            + (
                _other_type(wanted, others)
                or "give the answers to this benchmark, or the questions that they were generated for"
            )
        )


def _other_type(wanted: Collection[Hashable], found: Collection[Hashable]) -> str | None:
    """What to change if ids are the right ones, but numbers instead of texts or the other way round."""
    texts = {str(key): key for key in wanted}
    for key in found:
        same = texts.get(str(key))
        if same is not None and same != key:
            return f"question_id is {key!r}, but {same!r} in the question file; write the ids as they are there"
    return None


def count_note(found: int, published: int, what: str) -> list[str]:
    """A line if the benchmark in the folder has another size than the published one."""
    return [] if found == published else [f"{found} {what} instead of the published {published}"]
