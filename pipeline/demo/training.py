"""Phase 2 of every student of the demo; several of them side by side where there are cores."""

from collections.abc import Sequence

from tqdm import tqdm

from alignkd.pipeline.demo.folder import StudentPaths
from alignkd.pipeline.demo.processes import ALIGNKD, Command, available_cores, run_commands
from alignkd.pipeline.demo.steps import say

# One student alone gains little from more threads: its matrices are small.
MOST_AT_ONCE = 8


def train_students(students: Sequence[StudentPaths], steps: int) -> None:
    """Train each student in a process of its own; an interrupted one goes on from its checkpoint.

    A single student speaks to the terminal itself. Several keep logs, and one bar (or one line per student where
    there is no terminal) tells how far they all are.
    """
    at_once = min(available_cores(), len(students), MOST_AT_ONCE)
    if at_once <= 1:
        run_commands([_train(student) for student in students])
        return
    with tqdm(total=len(students) * steps, desc="train", unit="step", disable=None) as bar:
        told: set[str] = set()

        def tell(done: list[Command]) -> None:
            bar.update(sum(_steps_done(student) for student in students) - bar.n)
            for command in done:
                if command.name not in told:
                    told.add(command.name)
                    bar.clear()
                    say(f"{'':<12}{command.name} done, {len(told)} of {len(students)}")

        run_commands([_train(student, own_log=True) for student in students], at_once=at_once, on_tick=tell)


def _train(student: StudentPaths, *, own_log: bool = False) -> Command:
    return Command(
        name=f"train {student.name}",
        arguments=(ALIGNKD, "train", str(student.config)),
        log=student.log if own_log else None,
        threads=1 if own_log else None,
    )


def _steps_done(student: StudentPaths) -> int:
    """Lines of the student's metrics, one per step."""
    if not student.metrics.is_file():
        return 0
    with student.metrics.open("rb") as file:
        return sum(1 for _ in file)
