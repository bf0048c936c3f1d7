"""Phase 2 of every student of the demo, several at a time if there are enough cores."""

from collections.abc import Mapping

from tqdm import tqdm

from alignkd.pipeline.demo.folder import StudentPaths
from alignkd.pipeline.demo.processes import ALIGNKD, Command, available_cores, run_commands
from alignkd.pipeline.demo.steps import say

# More threads do not speed up one student, because its matrices are small.
MOST_AT_ONCE = 8


def train_students(students: Mapping[StudentPaths, int], at_once: int | None = None) -> None:
    """Train each student in its own process; an interrupted training resumes from its checkpoint.

    A single student prints to the terminal. Several students write logs, and one bar shows their progress (or one line
    per student without a terminal).

    Args:
        students: each student with its number of steps.
        at_once: largest number of students that train at the same time; None takes one per core.
    """
    at_once = min(at_once or available_cores(), len(students), MOST_AT_ONCE)
    if at_once <= 1:
        run_commands([_train(student) for student in students])
        return
    with tqdm(total=sum(students.values()), desc="train", unit="step", disable=None) as bar:
        reported: set[str] = set()

        def report(done: list[Command]) -> None:
            bar.update(sum(_steps_done(student) for student in students) - bar.n)
            for command in done:
                if command.name not in reported:
                    reported.add(command.name)
                    bar.clear()
                    say(f"{'':<12}{command.name} done, {len(reported)} of {len(students)}")

        run_commands([_train(student, own_log=True) for student in students], at_once=at_once, on_tick=report)


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
