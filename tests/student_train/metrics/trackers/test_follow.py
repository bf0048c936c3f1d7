"""The loop of a tracker's process, with a tracker that fails; what it reads and keeps; no library of a tracker."""

import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tracked_runs import tracked, write_steps

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.errors import TrainError
from alignkd.student_train.metrics.trackers import installed, process
from alignkd.student_train.metrics.trackers.installed import check_installed
from alignkd.student_train.metrics.trackers.kept import Kept
from alignkd.student_train.metrics.trackers.no_secrets import without_secrets
from alignkd.student_train.metrics.trackers.process import Messages, follow
from alignkd.student_train.metrics.trackers.rows import Row, RowReader
from alignkd.student_train.metrics.trackers.service import TrackedRun
from alignkd.student_train.output import read_configuration
from alignkd.student_train.run.checks.machine import check_machine


class Fake:
    """A tracker that fails at some of its calls, and otherwise keeps rows; the run ends with its row `last`."""

    place = "here"

    def __init__(self, fails_at: tuple[int, ...], has: int = -1, last: int | None = None) -> None:
        self.ended, self._last = threading.Event(), last
        self.rows: list[int] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self._calls, self._fails_at, self._has = 0, fails_at, has

    def _call(self) -> None:
        self._calls += 1
        if self._calls in self._fails_at:
            raise ConnectionError("no network: https://me:geheim@host/?token=abc")

    def open(self, run: TrackedRun, kept: Kept) -> int:
        self._call()
        return self._has

    def send(self, row: Row) -> None:
        self._call()
        self.rows.append(row.number)
        self.points.append((row.step, row.points))
        if row.number == self._last:
            self.ended.set()

    def problems(self) -> list[str]:
        return []

    def close(self, *, complete: bool) -> None:
        self.complete = complete


def test_every_row_is_sent_once_over_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first opening and two rows fail; one warning, the number at the end, and no secret in it."""
    monkeypatch.setattr(process, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(process, "LAST_PAUSE", 0.01)
    monkeypatch.setattr(process, "POLL_SECONDS", 0.01)
    write_steps(tmp_path, [1, 2, 3, 4], [0, 2])
    service, said = Fake((1, 4, 6), last=8), io.StringIO()
    follow(service, tracked(tmp_path), service.ended, Messages(said))
    assert service.rows == [1, 2, 4, 5, 6, 8] and service.complete
    warning, place, end = (json.loads(line) for line in said.getvalue().splitlines())
    assert warning["warning"].startswith(
        "ConnectionError: no network: https://***@host/?token=***; the training goes on"
    )
    assert (place, end) == ({"note": "here"}, {"note": "failed 3 times, and has every step up to 4"})
    assert json.loads((tmp_path / "trackers" / "wandb.json").read_text())["row"] == 8


def test_rows_that_the_tracker_has_are_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all rows that are read at once are there already."""
    monkeypatch.setattr(process, "ROWS_AT_ONCE", 1)
    write_steps(tmp_path, [1, 2, 3], [2])
    service, ended = Fake((), has=4), threading.Event()
    ended.set()
    follow(service, tracked(tmp_path), ended, Messages(io.StringIO()))
    assert service.rows == [5, 6] and not service.complete


def test_scores_follow_the_steps_and_are_sent_once(tmp_path: Path) -> None:
    """After a validation of the last step; other scores are sent again; the run is that of any settings."""
    write_steps(tmp_path, [1, 2, 3, 4], [4])
    first, ended = Fake((), has=7), threading.Event()
    ended.set()
    follow(first, tracked(tmp_path), ended, Messages(io.StringIO()))
    assert first.rows == [8, 9]
    for scores, sent in (({"gqa": 60.0}, 1), ({"gqa": 60.0}, 0), ({"gqa": 61.0}, 1)):
        service = Fake((), has=9)
        follow(service, tracked(tmp_path, settings="", done=4, scores=scores), ended, Messages(io.StringIO()))
        assert service.points == [(4, {"eval/gqa": scores["gqa"]})] * sent and service.complete
    assert Kept.of(tmp_path, "wandb", "s").scores == {"gqa": 61.0}


def test_a_tracker_that_is_never_reached_does_not_delay_the_end(tmp_path: Path) -> None:
    write_steps(tmp_path, [1], [])
    service, ended, said = Fake((1,)), threading.Event(), io.StringIO()
    ended.set()
    follow(service, tracked(tmp_path), ended, Messages(said))
    assert service.rows == [] and "did not get every step (ConnectionError" in said.getvalue()


def test_rows_are_read_in_order_while_they_are_written(tmp_path: Path) -> None:
    """A validation waits for its step; an incomplete line waits for its end; a replaced file is the earlier one."""
    write_steps(tmp_path, [], [0])
    (tmp_path / "metrics.jsonl").write_text("")
    reader = RowReader(tmp_path, done=0)
    assert [row.number for row in reader.next_rows(10)] == [1]
    write_steps(tmp_path, [], [1])
    assert reader.next_rows(10) == []
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
        file.flush()
        assert reader.next_rows(10) == []
        file.write('ss": 0.5}\n')
    assert [(row.number, row.points) for row in reader.next_rows(10)] == [
        (2, {"loss/total": 0.5}),
        (3, {"validation/total": 1.0}),
    ]
    write_steps(tmp_path, [2, 3, 4], [])
    assert [row.step for row in reader.next_rows(2)] == [2, 3]
    (tmp_path / "other").write_text('{"step": 1, "loss": 9.0}\n')
    (tmp_path / "other").replace(tmp_path / "metrics.jsonl")
    assert [row.step for row in reader.next_rows(2)] == [4]
    reader.close()


def test_another_run_in_the_same_folder_is_another_run(tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint may start again with other settings."""
    first = Kept.of(tmp_path, "wandb", "a")
    first.after(7).write(tmp_path, "wandb")
    again = Kept.of(tmp_path, "wandb", "a")
    assert (again.identifier, again.row, again.new) == (first.identifier, 7, False)
    other = Kept.of(tmp_path, "wandb", "b")
    assert other.new and other.identifier != first.identifier and other.row == -1
    (tmp_path / "trackers" / "wandb.json").write_text("{")
    assert Kept.of(tmp_path, "wandb", "a").new


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "geheimgeheim")
    given = {
        "store": {"path": "https://me:pass@host/s?X-Sig=abc&x=1"},
        "n": [1, None, "key geheimgeheim"],
        "s3": "s3://b/p",
    }
    assert without_secrets(given) == {
        "store": {"path": "https://***@host/s?X-Sig=***&x=***"}, "n": [1, None, "key ***"], "s3": "s3://b/p",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("none", ()),
        ([], ()),
        (None, ()),
        ("wandb", ("wandb",)),
        (["trackio", "tensorboard"], ("trackio", "tensorboard")),
    ],
)
def test_names_are_those_of_transformers(given: Any, expected: tuple[str, ...]) -> None:
    assert TrainConfig(output=Path("x"), steps=1, report_to=given).report_to == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"report_to": "mlflow"},
            "expected none, tensorboard, wandb, trackio or a list of them, found the text 'mlflow'",
        ),
        ({"report_to": ["wandb", 3]}, "found the number 3"),
        ({"tensorboard": False}, "tensorboard: false is now report_to: none"),
        ({"tensorboard": True}, "tensorboard: true is now report_to: tensorboard, which is the default"),
    ],
)
def test_other_names_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(output=Path("x"), steps=1, **given)


@pytest.mark.parametrize(("earlier", "now"), [(True, ["tensorboard"]), (False, [])])
def test_a_run_of_an_earlier_version_has_the_present_key(earlier: bool, now: list[str], tmp_path: Path) -> None:
    sections = {"data": {}, "store": {}, "train": {"steps": 1, "tensorboard": earlier}}
    (tmp_path / "run.json").write_text(json.dumps(sections))
    assert read_configuration(tmp_path) == {**sections, "train": {"steps": 1, "report_to": now}}


def test_a_missing_library_is_refused_before_the_teacher_runs(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the folder `wandb` of an earlier run lies in the current one, which Python could import."""
    monkeypatch.setattr(installed, "SERVICES", ("wandb_that_is_missing",))
    os.makedirs(tmp_path / "wandb_that_is_missing")  # noqa: PTH103
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TrainError, match=r"run `pip install 'alignkd\[wandb_that_is_missing\]'`, or remove"):
        check_installed(["tensorboard", "wandb_that_is_missing"])
    monkeypatch.setattr(installed, "SERVICES", ("trackio",))
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    job = make_job(tmp_path, report_to="trackio")
    with pytest.raises(TrainError, match="trackio is not installed"):
        check_machine(job, device_type="cpu", processes=1)
