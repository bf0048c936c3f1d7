"""Hundreds of parameter names in one readable line: `model.layers.{0-31}.mlp.up_proj.weight`. Nothing is left out."""

import re
from collections.abc import Iterable, Sequence

_FIRST_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def group_keys(keys: Iterable[str]) -> list[str]:
    """Names that differ in their first number alone become one pattern; sorted, each key in exactly one pattern.

    >>> group_keys(["a.0.w", "a.1.w", "a.3.w", "b"])
    ['a.{0-1,3}.w', 'b']
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    patterns: list[str] = []
    for key in sorted(set(keys)):
        match = _FIRST_NUMBER.search(key)
        # A leading zero would be lost in a range of integers.
        if match is None or str(int(match[0])) != match[0]:
            patterns.append(key)
        else:
            numbers.setdefault((key[: match.start()], key[match.end() :]), []).append(int(match[0]))
    patterns += [f"{head}{_braces(values)}{tail}" for (head, tail), values in numbers.items()]
    return sorted(patterns)


def _braces(values: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> `{0-2,5}`; one number stands alone."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return "{" + ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) + "}"
