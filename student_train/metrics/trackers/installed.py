"""Whether the libraries of the chosen trackers are installed; `alignkd run` asks before the teacher runs."""

from collections.abc import Sequence
from importlib.util import find_spec

from alignkd.student_train.errors import TrainError

SERVICES = ("wandb", "trackio")


def check_installed(report_to: Sequence[str]) -> None:
    """Refuse a tracker whose library is missing; nothing is imported.

    Raises:
        TrainError: one line with the command that installs it.
    """
    for name in SERVICES:
        if name in report_to and not _is_installed(name):
            raise TrainError(
                f"train.report_to: {name} is not installed; run `pip install 'alignkd[{name}]'`, or remove {name} "
                "from the list"
            )


def _is_installed(name: str) -> bool:
    # wandb makes a folder `wandb`, which is importable as a package without a file
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
