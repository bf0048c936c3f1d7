"""Plans of all stages of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkd.pipeline.config.recipes import load_stages
from alignkd.pipeline.plan.models import ModelShapes
from alignkd.pipeline.plan.plan import Plan, PlanOptions, make_plan, shapes_of_student
from alignkd.storage.files.location import check_location


def plan_stages(path: Path, only: str | None, options: PlanOptions) -> list[Plan]:
    """The plan of every stage of a file, or of one.

    Raises:
        InputError: what the file, the data or the checkpoints lack.
        StoreError: a store where none can be written.
    """
    if only is not None:
        load_stages(path, "plan", only=only)  # says so when there is none of that name
    for stage in load_stages(path, "plan"):
        check_location(stage.config.store.path, writing=True)
    plans = []
    before: ModelShapes | None = None
    for stage in load_stages(path, "plan"):
        student = stage.config.student
        # what the stage before trains does not exist yet, and has the shapes of what it starts from
        made = student is not None and before is not None and not Path(student.checkpoint).exists()
        shapes = before if made else shapes_of_student(stage.config)
        if only in (None, stage.name):
            plans.append(make_plan(stage.config, options, name=stage.name, student_shapes=shapes))
        before = shapes
    return plans


def summary(plans: Sequence[Plan]) -> dict[str, Any]:
    """Several stages as one object: stores add up, memory is that of the largest."""
    stages = [plan.to_json() for plan in plans]
    trained = [stage["student_memory_bytes"] for stage in stages if stage["student_memory_bytes"] is not None]
    targets = {target: sum(stage["store_bytes_by_target"][target] for stage in stages)
               for target in stages[0]["store_bytes_by_target"]}  # fmt: skip
    total, disk = sum(targets.values()), plans[0].disk
    return {
        "store_bytes": total,
        "store_bytes_by_target": targets,
        "teacher_memory_bytes": max(stage["teacher_memory_bytes"] for stage in stages),
        "student_memory_bytes": max(trained, default=None),
        "student_host_bytes": max((stage["student_host_bytes"] or 0 for stage in stages), default=0) or None,
        "fits": all(stage["fits"] for stage in stages) and (disk is None or total <= disk),
        "stages": stages,
    }
