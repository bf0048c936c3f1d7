"""Child processes of the demo: side by side as asked, failures in one line, none left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkd.pipeline.demo.processes import Command, run_commands
from alignkd.vlm.errors import InputError

REPOSITORY = Path(__file__).parents[3]


def python(code: str, name: str = "child", log: Path | None = None, threads: int | None = None) -> Command:
    """A command that runs `code`; `timeit` is the module that takes code as an argument."""
    return Command(name=name, arguments=("timeit", "-n1", "-r1", code), log=log, threads=threads)


def test_at_most_as_many_as_asked_run_side_by_side(tmp_path: Path) -> None:
    """A child waits for a second one beside it, the last of all for the end of the others; a third would be seen."""
    code = "\n".join(
        (
            "import os, pathlib, time",
            f"folder = pathlib.Path({str(tmp_path)!r})",
            "count = lambda kind: len(list(folder.glob(f'*.{kind}')))",
            "mine = folder / f'{os.getpid()}.running'",
            "mine.touch()",
            "while count('running') < 2 and count('seen') < 4:",
            "    time.sleep(0.01)",
            "time.sleep(0.2)",
            "(folder / f'{os.getpid()}.seen').write_text(str(count('running')))",
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
    log, mark = tmp_path / "child.log", tmp_path / "lasting.pid"
    fail = f"import os, pathlib\nwhile not pathlib.Path({str(mark)!r}).exists(): pass\n"
    failing = python(f"{fail}print('the disk is full', flush=True); os._exit(7)", name="train x", log=log)
    lasting = python(sleeping(mark), name="train y", log=tmp_path / "other.log")
    with pytest.raises(InputError) as caught:
        run_commands([failing, lasting], at_once=2)
    message = str(caught.value)
    assert message.startswith("train x: ended with exit code 7: its last line is 'the disk is full'")
    assert str(log) in message
    assert "\n" not in message
    assert not is_running(int(mark.read_text())), "the other child must be told to stop"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_a_stopped_demo(
    tmp_path: Path, number: signal.Signals, wait_until: Callable[..., None], patience: float
) -> None:
    mark = tmp_path / "child.pid"
    child = sleeping(mark)
    parent = (
        # As on a terminal: a shell that started the tests in the background would have Ctrl-C ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from alignkd.pipeline.demo import processes; processes._GRACE_SECONDS = 1.0; "
        f"processes.run_commands([processes.Command(name='c', arguments=('timeit', '-n1', '-r1', {child!r}))])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment, stderr=subprocess.DEVNULL)
    wait_until(mark.is_file, "the child's process id")
    process.send_signal(number)
    assert process.wait(timeout=patience) != 0
    wait_until(lambda: not is_running(int(mark.read_text())), "the child's end")


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie that nobody collected."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def sleeping(mark: Path) -> str:
    """Code that leaves its process id in `mark`, whole or not at all, and then sleeps longer than any test waits."""
    return (
        f"import os, pathlib, time; draft = pathlib.Path({str(mark)!r} + '.draft'); "
        f"draft.write_text(str(os.getpid())); draft.rename({str(mark)!r}); time.sleep(7200)"
    )
