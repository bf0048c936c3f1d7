"""Plans of all stages of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkd.pipeline.config.recipes import load_stages
from alignkd.pipeline.config.sections.store_list import ListedStores
from alignkd.pipeline.plan.from_stores import TrainingPlan, training_plan
from alignkd.pipeline.plan.make import make_plan, shapes_of_student, shapes_of_teacher
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.result import Plan, PlanOptions
from alignkd.storage.files.location import check_location
from alignkd.student_train.output import student_folder


def plan_stages(path: Path, only: str | None, options: PlanOptions) -> list[Plan | TrainingPlan]:
    """The plan of every stage of a file, or of one stage.

    Args:
        only: name of that stage; None for all.

    Raises:
        InputError: an unusable configuration, data file or checkpoint.
        StoreError: `store.path` is a place that cannot be written to; a listed store is not there yet.
        TrainError: listed stores do not fit together.
    """
    if only is not None:
        load_stages(path, "plan", only=only)  # raises if no stage has that name
    for stage in load_stages(path, "plan"):
        if not isinstance(stage.config.store, ListedStores):
            check_location(stage.config.store.path, writing=True)
    plans: list[Plan | TrainingPlan] = []
    before: ModelShapes | None = None
    trained: list[Path] = []
    for stage in load_stages(path, "plan"):
        student = stage.config.student
        # what the previous stage trains does not exist yet; it has the shapes of that stage's own student
        made = student is not None and before is not None and not Path(student.checkpoint).exists()
        shapes = before if made else shapes_of_student(stage.config)
        if only in (None, stage.name) and isinstance(stage.config.store, ListedStores):
            assert shapes is not None
            section = stage.config.eval
            teacher = shapes_of_teacher(stage.config) if section is not None and section.teacher else None
            plans.append(
                training_plan(stage.config, options, shapes, teacher=teacher, name=stage.name, trained=trained)
            )
        elif only in (None, stage.name):
            plans.append(make_plan(stage.config, options, name=stage.name, student_shapes=shapes, trained=trained))
        before = shapes
        if stage.config.train is not None:
            trained.append(student_folder(stage.config.train.output))
    return plans


def summary(plans: Sequence[Plan | TrainingPlan]) -> dict[str, Any]:
    """Several stages as one object: bytes of stores are added up, memory is that of the largest stage."""
    stages = [plan.to_json() for plan in plans]
    trained = [stage["student_memory_bytes"] for stage in stages if stage["student_memory_bytes"] is not None]
    written = [stage for stage in stages if "store_bytes" in stage]
    targets = {target: sum(stage["store_bytes_by_target"][target] for stage in written)
               for target in (written[0]["store_bytes_by_target"] if written else ())}  # fmt: skip
    total, disk = sum(targets.values()), next((plan.disk for plan in plans if isinstance(plan, Plan)), None)
    return {
        "store_bytes": total,
        "store_bytes_by_target": targets,
        "teacher_memory_bytes": max((stage["teacher_memory_bytes"] for stage in written), default=None),
        "student_memory_bytes": max(trained, default=None),
        "student_host_bytes": max((stage["student_host_bytes"] or 0 for stage in stages), default=0) or None,
        "fits": all(stage["fits"] for stage in stages) and (disk is None or total <= disk),
        "stages": stages,
    }
