"""The best step of a run, from its output folder."""

from pathlib import Path

from alignkd.storage import StoreError
from alignkd.storage.schema.sealed_json import unseal
from alignkd.student_train.checkpoints.checkpoint import STATE, checkpoint_path
from alignkd.student_train.output import checkpoints_folder


def best_step(output: Path) -> int | None:
    """The step with the best validation so far whose checkpoint exists; None if there is none.

    The newest readable checkpoint decides, also while the run goes on.
    """
    folder = checkpoints_folder(output)
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            step = (unseal(path / STATE).get("validation") or {}).get("best_step")
        except StoreError:
            continue  # damaged, or removed by the run meanwhile
        return step if step is not None and checkpoint_path(folder, step).is_dir() else None
    return None
