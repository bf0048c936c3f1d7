"""Every process of a run must have the same settings, stores and versions: each reads its own files."""

import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from alignkd.student_train.errors import TrainError
from alignkd.student_train.run.plan import RunPlan

# Of one process only: where files lie, how its batches are prepared, what the first process alone reads or writes.
OF_ONE_PROCESS = {
    *("adapters", "centres", "data_workers", "extend", "log_every", "output", "report_project", "report_to", "stem"),
}
PACKAGES = ("alignkd", "torch", "deepspeed", "transformers")


def check_ranks_agree(plan: RunPlan) -> None:
    """Refuse processes that would train with different values: the first machine has the current files, another not.

    Different learning rates would make another student; different times of checkpoints would let processes wait for
    exchanges that the others never make.

    Raises:
        TrainError: on every rank; it names the first setting that differs, both values and both processes.
    """
    if plan.ranks.world_size == 1:
        return
    found = plan.ranks.from_all((socket.gethostname(), _values(plan)))
    (first_host, first), *others = found
    for rank, (host, values) in enumerate(others, 1):
        differing = [name for name in first if values.get(name) != first[name]] or sorted(values.keys() - first.keys())
        if differing:
            name = differing[0]
            more = f" (and {len(differing) - 1} more settings differ)" if len(differing) > 1 else ""
            raise TrainError(
                f"{name} is {first.get(name)} for rank 0 on host {first_host} and {values.get(name)} for rank {rank} "
                f"on host {host}{more}; give every process the same configuration, stores and versions of packages"
            )


def _values(plan: RunPlan) -> dict[str, Any]:
    config = plan.config.model_dump(mode="json", exclude=OF_ONE_PROCESS)
    return {
        **{f"package {name}": _version(name) for name in PACKAGES},
        **{name: value for name, value in plan.settings.items() if name not in config},
        **{f"train.{name}": value for name, value in config.items()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
