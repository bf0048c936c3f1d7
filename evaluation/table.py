"""The six benchmarks as one row of the table that papers print."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from alignkd.evaluation.score import Score

# number that the table prints = number of the score times this
_FACTORS = {"gqa": 1.0, "sqa": 1.0, "textvqa": 1.0, "mme": 1.0, "mmbench": 1.0, "pope": 100.0}
# the average counts MME Perception of 2000 points as a percentage of 2000
_SHARES = {"mme": 1 / 20}

# published rows, in the units of `table_row`; MobileVLM V2 1.7B: README of Meituan-AutoML/MobileVLM
TABLE_1: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "MobileVLM V2 1.7B (published)": MappingProxyType(
            {"gqa": 59.3, "sqa": 66.7, "textvqa": 52.1, "mme": 1302.8, "mmbench": 57.7, "pope": 84.3}
        ),
    }
)


def table_row(scores: Iterable[Score]) -> dict[str, float]:
    """The headlines in the units of the table: per cent, and points for MME."""
    return {score.benchmark: score.headline_value * _FACTORS[score.benchmark] for score in scores}


def table1_average(row: Mapping[str, float]) -> float | None:
    """(MME/20 + GQA + TextVQA + POPE + MMBench + SQA) / 6 of a row in the table's units; None unless it has all six."""
    if set(row) != set(_FACTORS):
        return None
    return sum(value * _SHARES.get(name, 1.0) for name, value in row.items()) / len(_FACTORS)
