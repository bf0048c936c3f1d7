"""Which samples of the list are shown."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """All conditions must hold. The default keeps every sample.

    Attributes:
        text: words that the conversation contains, see `words.py`.
        sources: names of data sets; empty: all.
        unusable: True: unusable samples only, False: records only, None: both.
        reasons: groups of reasons (`StoreIndex.reasons`); samples with another reason or none are left out. Empty: all.
        id: part of the id; upper and lower case of ASCII letters are not distinguished.
        ranges: column -> smallest and largest value, both included; None: no limit. A sample without a value of the
            column is left out, also where both limits are None.
    """

    text: str = ""
    sources: tuple[str, ...] = ()
    unusable: bool | None = None
    reasons: tuple[str, ...] = ()
    id: str = ""
    ranges: Mapping[str, Bounds] = field(default_factory=dict)

    def without(self, column: str) -> "Filter":
        """The same filter without what it says about one column, for a histogram of that column."""
        kept = {name: bounds for name, bounds in self.ranges.items() if name != column}
        changed = replace(self, ranges=kept)
        if column == "source":
            return replace(changed, sources=())
        return replace(changed, reasons=()) if column == "reason" else changed
