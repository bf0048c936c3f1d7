"""The metrics file survives a kill and never holds what is not JSON."""

import json
from pathlib import Path

from alignkd.student_train.metrics.file import MetricsLog


def test_cut_back_drops_later_and_torn_lines(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl")
    assert log.cut_back(0) == {}
    for step in range(1, 6):
        log.append({"step": step, "loss": step / 3})
    for torn in ('{"step": 6, "by_source": {"a": {}}', '{"step": 6, "lo'):
        with log.path.open("a") as file:
            file.write(torn)
        log.cut_back(5)
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert log.cut_back(3) == {"step": 3, "loss": 1.0}
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2, 3]
    log.append({"step": 4, "loss": 0.5})
    assert len(log.path.read_text().splitlines()) == 4


def test_not_finite_is_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    line = log.append({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "skipped": True, "attention": None})
    assert line == {"step": 1, "loss": None, "grad_norm": None, "skipped": True, "attention": None}
    assert json.loads(log.path.read_text()) == line
