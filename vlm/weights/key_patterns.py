"""Write hundreds of parameter names as one readable line: `model.layers.{0-31}.mlp.up_proj.weight`."""

import re
from collections.abc import Iterable, Sequence

_FIRST_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def group_keys(keys: Iterable[str]) -> list[str]:
    """Join names that differ only in their first number into patterns; sorted, each key in exactly one pattern.

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
    """[0, 1, 2, 5] -> `{0-2,5}`; a single number has no braces."""
    if len(values) == 1:
        return str(values[0])
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return "{" + ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) + "}"
