"""Whether there is exactly one answer to every question."""

from collections import Counter
from collections.abc import Container, Hashable, Iterable

from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.listed import some

AS_ORIGINAL = "--as-original"
_MAX_DIGITS = 20


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
            f"no answer is to one of the {wanted.total()} questions ({some(list(wanted))})"
            f"{_type_hint(wanted, others)}; give the answers to this benchmark"
        )
    if missing:
        hint = _type_hint(wanted, others)
        problems.append(f"questions without an answer: {len(missing)} of {wanted.total()} ({some(missing)}){hint}")
    if doubled:
        problems.append(f"questions with several answers: {len(doubled)} ({some(doubled)})")
    if missing and missing_is_fatal:
        raise AnswersError(f"{problems[0]}; generate the missing answers")
    if problems and not as_original:
        raise AnswersError(
            f"{'; '.join(problems)}; generate all answers, or give {AS_ORIGINAL} for the original's number"
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
            f"answers to questions that {place} does not have: {len(others)} ({some(others)})"
            f"{_type_hint(wanted, others)}; "
            "give the answers to this benchmark, or the questions that they were generated for"
        )


def _type_hint(wanted: Container[Hashable], others: Iterable[Hashable]) -> str:
    """What to add to a message where answers have the number of a question in the other type of JSON; "" elsewhere."""
    for key in others:
        question_id = key[0] if isinstance(key, tuple) else key
        swapped: str | int
        if isinstance(question_id, int):
            swapped, found, asked = str(question_id), "an integer", f'the text "{question_id}"'
        elif isinstance(question_id, str) and question_id.isdecimal() and len(question_id) <= _MAX_DIGITS:
            swapped, found, asked = int(question_id), "a text", f"the integer {int(question_id)}"
        else:
            continue
        if ((swapped, *key[1:]) if isinstance(key, tuple) else swapped) in wanted:
            return f"; `question_id` {question_id} of an answer is {found}, that of the question is {asked}"
    return ""


def count_note(found: int, published: int, what: str) -> list[str]:
    """A line if the benchmark in the folder has another size than the published one."""
    return [] if found == published else [f"{found} {what} instead of the published {published}"]
