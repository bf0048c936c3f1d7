"""The six benchmarks as one row of the table that papers print."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from alignkd.evaluation.score import Score

# number that the table prints = number of the score times this
_FACTORS = {"gqa": 1.0, "sqa": 1.0, "textvqa": 1.0, "mme": 1.0, "mmbench": 1.0, "pope": 100.0}
# the average counts MME Perception of 2000 points as a percentage of 2000
_SHARES = {"mme": 1 / 20}


def _row(gqa: float, sqa: float, textvqa: float, pope: float, mme: float, mmbench: float) -> Mapping[str, float]:
    return MappingProxyType({"gqa": gqa, "sqa": sqa, "textvqa": textvqa, "mme": mme, "mmbench": mmbench, "pope": pope})


# published rows in the units of `table_row`, from the README of Meituan-AutoML/MobileVLM (commit 688fdec)
TABLE_1: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "MobileVLM V2 1.7B (published)": _row(59.3, 66.7, 52.1, 84.3, 1302.8, 57.7),
        "MobileVLM V2 3B (published)": _row(61.1, 70.0, 57.5, 84.7, 1440.5, 63.2),
        "MobileVLM V2 7B (published)": _row(62.6, 74.8, 62.3, 85.3, 1560.7, 69.2),
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


def shown_value(name: str, value: float | None) -> str:
    """A number of the table in its digits: one for points of MME, two for per cent and for the average."""
    return "-" if value is None else f"{value:.{digits(name)}f}"


def digits(name: str) -> int:
    """Digits after the point of a benchmark's number."""
    return 1 if name == "mme" else 2


def unit(name: str) -> str:
    """Unit of a benchmark's number in the table."""
    return "points of 2000" if name == "mme" else "%"
