"""Runs one `alignkd` command as a child process that can end in an orderly way: signals are forwarded to it.

subprocess.run kills its child a quarter of a second after Ctrl-C: a dump would lose its shard and a training its
checkpoint. A SIGTERM that ends only the parent would leave the child running.
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
    """Run the command and return its report with `as_json`, otherwise None.

    If the command fails, this process ends with its exit code.

    Args:
        arguments: arguments of `alignkd`.
        as_json: call the command with `--json`.
        launcher: command that starts several processes of a Python module (`torchrun ...`, `deepspeed ...`).
    """
    command = [*_module_starter(launcher), "alignkd.pipeline.cli", *arguments, *(["--json"] if as_json else [])]
    # launchers print on stdout, where only the report belongs
    process = subprocess.Popen(command, stdout=subprocess.PIPE if as_json else sys.stderr if launcher else None)
    with _signals_for(process, bool(launcher)):
        output, _ = process.communicate()
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)
    return json.loads(output) if as_json else None


def _module_starter(launcher: Sequence[str]) -> list[str]:
    if not launcher:
        return [sys.executable, "-m"]
    # without --no_local_rank, deepspeed adds its own option to the command
    is_deepspeed = Path(launcher[0]).name == "deepspeed"
    return [*launcher, *(["--no_local_rank", "--module"] if is_deepspeed else ["-m"])]


@contextmanager
def _signals_for(process: "subprocess.Popen[bytes]", has_launcher: bool) -> Iterator[None]:
    """Ignore Ctrl-C, which the terminal sends to the child too, and forward signals that only this process may get.

    A launcher gets SIGTERM for every signal: SIGUSR1 would kill torchrun and leave its processes running.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM if has_launcher else number)

    before: dict[signal.Signals, Any] = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:  # respect nohup
            before[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
