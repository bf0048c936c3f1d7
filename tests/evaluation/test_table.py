"""The average over the six benchmarks is the one that papers print."""

import pytest
from golden_evaluations import NAMES, scored

from alignkd.evaluation.table import TABLE_1, table1_average, table_row

PRINTED = {
    "MobileVLM V2 1.7B (published)": 64.2,
    "MobileVLM V2 3B (published)": 68.1,
    "MobileVLM V2 7B (published)": 72.1,
}


@pytest.mark.parametrize("title", list(TABLE_1))
def test_average_of_published_rows(title: str) -> None:
    average = table1_average(TABLE_1[title])
    # the printed numbers and their printed average are rounded
    assert average == pytest.approx(PRINTED[title], abs=0.1)


def test_average_of_scores() -> None:
    row = table_row([scored(name) for name in NAMES])
    by_hand = (1075 / 20 + 51.61290322580645 + 74.5945945945946 + 57.15617715617715 + 60 + 38.46153846153847) / 6
    assert table1_average(row) == pytest.approx(by_hand)
    assert row["pope"] == pytest.approx(57.15617715617715)


@pytest.mark.parametrize("name", NAMES)
def test_no_average_without_all_six(name: str) -> None:
    row = dict(TABLE_1["MobileVLM V2 1.7B (published)"])
    del row[name]
    assert table1_average(row) is None
