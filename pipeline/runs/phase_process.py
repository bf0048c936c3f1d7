"""One `alignkd` command as a process of its own that ends as it likes to: signals are passed on, not made a kill.

subprocess.run kills its child a quarter of a second after Ctrl-C, which would cost a dump its shard and a training its
checkpoint; and a SIGTERM that ends only the parent would leave the child at work.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


def run_alignkd(arguments: Sequence[str], as_json: bool, launcher: Sequence[str] = ()) -> Any:
    """The command's report with `as_json`, else None. Where it fails, this process ends with its exit code.

    Args:
        arguments: of `alignkd`.
        as_json: ask the command for JSON.
        launcher: command that starts several processes of a Python module (`torchrun ...`, `deepspeed ...`).
    """
    command = [*_module_starter(launcher), "alignkd.pipeline.cli", *arguments, *(["--json"] if as_json else [])]
    # launchers speak on stdout, where only the report belongs
    process = subprocess.Popen(command, stdout=subprocess.PIPE if as_json else sys.stderr if launcher else None)
    with _signals_for(process, bool(launcher)):
        output, _ = process.communicate()
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    return json.loads(output) if as_json else None


def _module_starter(launcher: Sequence[str]) -> list[str]:
    if not launcher:
        return [sys.executable, "-m"]
    # deepspeed would add an option of its own to the command
    is_deepspeed = Path(launcher[0]).name == "deepspeed"
    return [*launcher, *(["--no_local_rank", "--module"] if is_deepspeed else ["-m"])]


@contextmanager
def _signals_for(process: "subprocess.Popen[bytes]", has_launcher: bool) -> Iterator[None]:
    """Ctrl-C reaches the child from the terminal, as it does us: only wait. Others may come to us alone: pass them on.

    A launcher is told SIGTERM whatever came: torchrun would die of SIGUSR1 and leave its processes.
    """

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM if has_launcher else number)

    before: dict[signal.Signals, Any] = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:  # nohup keeps its meaning
            before[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
