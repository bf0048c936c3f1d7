"""Worker processes: order kept, errors passed on, nobody left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkd.pipeline.data.stats.process_pool import ProcessPool
from alignkd.vlm.errors import InputError


def refuse_seven(context: int, task: int) -> int:
    if task == 7:
        raise InputError(f"task {task} is refused")
    return context * task


def die(context: int, task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order_and_errors_where_they_arise(count: int) -> None:
    with ProcessPool(3, count) as workers:
        assert list(workers.map(refuse_seven, range(8, 60))) == [3 * task for task in range(8, 60)]
        with pytest.raises(InputError, match="task 7 is refused"):
            list(workers.map(refuse_seven, range(30)))


def test_a_killed_worker_is_one_line_not_a_hang() -> None:
    with pytest.raises(InputError, match="one of 2 worker processes was killed"), ProcessPool(3, 2) as workers:
        list(workers.map(die, range(10)))


SLOW_WORK = """
import time
from alignkd.pipeline.data.stats.process_pool import ProcessPool

def slow(context, task):
    time.sleep(0.2)
    return task

if __name__ == "__main__":
    with ProcessPool(None, 2) as workers:
        for task in workers.map(slow, range(100_000)):
            print(task, flush=True)
"""


def members(group: int) -> set[int]:
    """Processes of a process group that are not zombies."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[2]) == group and fields[0] != "Z":
            found.add(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("how", "starting"),
    [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, False)],
)
def test_nobody_outlives_a_run_that_ends_early(
    tmp_path: Path, how: signal.Signals, starting: bool, wait_until: Callable[..., None], patience: float
) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_WORK)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # test runs in the background ignore it
    )
    try:
        assert parent.stdout is not None
        if not starting:
            assert parent.stdout.readline() == "0\n"
        wait_until(lambda: len(members(parent.pid)) >= 3 or parent.poll() is not None, "both workers")
        assert parent.poll() is None
        # Ctrl-C reaches the whole group, as a terminal sends it; the others only the parent.
        (os.killpg if how == signal.SIGINT else os.kill)(parent.pid, how)
        _, errors = parent.communicate(timeout=patience)
        wait_until(lambda: not members(parent.pid), "the end of all workers")
        assert parent.returncode == -how or (how == signal.SIGINT and parent.returncode in {1, 130})
        assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == (1 if how == signal.SIGINT else 0), (
            errors
        )
    finally:
        for process in members(parent.pid):
            os.kill(process, signal.SIGKILL)
