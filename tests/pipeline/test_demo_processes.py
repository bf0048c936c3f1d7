"""Child processes of the demo: side by side as asked, failures in one line, none left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.demo.processes import Command, run_commands
from vlm.errors import InputError

REPOSITORY = Path(__file__).parents[2]


def python(code: str, name: str = "child", log: Path | None = None, threads: int | None = None) -> Command:
    """A command that runs `code`; `timeit` is the module that takes code as an argument."""
    return Command(name=name, arguments=("timeit", "-n1", "-r1", code), log=log, threads=threads)


def test_at_most_as_many_as_asked_run_side_by_side(tmp_path: Path) -> None:
    code = "; ".join(
        (
            "import os, pathlib, time",
            f"folder = pathlib.Path({str(tmp_path)!r})",
            "mine = folder / f'{os.getpid()}.running'",
            "mine.touch()",
            "time.sleep(0.3)",
            "count = len(list(folder.glob('*.running')))",
            "(folder / f'{os.getpid()}.seen').write_text(str(count))",
            "mine.unlink()",
        )
    )
    done: list[str] = []
    run_commands(
        [python(code, name=f"child {number}") for number in range(5)],
        at_once=2,
        on_tick=lambda commands: done.extend(c.name for c in commands if c.name not in done),
    )
    seen = [int(path.read_text()) for path in tmp_path.glob("*.seen")]
    assert len(seen) == 5
    assert max(seen) == 2
    assert sorted(done) == [f"child {number}" for number in range(5)]


def test_logs_and_threads_reach_the_child(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    run_commands([python("import os; print('threads', os.environ['OMP_NUM_THREADS'])", log=log, threads=3)])
    assert "threads 3" in log.read_text()


def test_a_failure_is_one_line_with_what_the_child_said_last(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    failing = python("import os; print('the disk is full', flush=True); os._exit(7)", name="train x", log=log)
    lasting = python("import time; time.sleep(60)", name="train y", log=tmp_path / "other.log")
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        run_commands([failing, lasting], at_once=2)
    message = str(caught.value)
    assert message.startswith("train x: ended with exit code 7: it said 'the disk is full'")
    assert str(log) in message
    assert "\n" not in message
    assert time.monotonic() - started < 30, "the other child must be told to stop"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_a_stopped_demo(tmp_path: Path, number: signal.Signals) -> None:
    mark = tmp_path / "child.pid"
    child = f"import os, pathlib, time; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(120)"
    parent = (
        # As on a terminal: a shell that started the tests in the background would have Ctrl-C ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pipeline.demo import processes; processes._GRACE_SECONDS = 1.0; "
        f"processes.run_commands([processes.Command(name='c', arguments=('timeit', '-n1', '-r1', {child!r}))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: mark.is_file() and mark.read_text() != "")
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    wait_until(lambda: not is_running(int(mark.read_text())), seconds=10)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie that nobody collected."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Poll `condition`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
