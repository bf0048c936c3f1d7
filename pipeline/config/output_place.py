"""Where `train.output` may be: a folder of its own, so that neither a run nor its removal takes anything else along.

Told before the teacher runs, by the paths alone. What a folder holds is looked at when the run claims it
(`student_train/run/claim.py`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.student_train.output import student_folder


def output_problems(stages: Mapping[str | None, RunConfig]) -> list[str]:
    """One line for each `train.output` that is, holds or lies in a folder of something else.

    An output inside the image folder is allowed: images are found by the names that the data gives, so a run there
    neither reads nor writes any of them.

    Args:
        stages: by name; None names the only stage of a file without stages.
    """
    problems: dict[str, None] = {}
    for name, config in stages.items():
        if config.train is None:
            continue
        output, where = config.train.output, "" if name is None else f"stage {name}: "
        for other, of_other in stages.items():
            for key, place in _places(of_other):
                relation = _relation(output, place)
                if relation is None or (relation == "lies in" and key == "data.images"):
                    continue
                if other != name and _relation(student_folder(output), place) == "is":
                    continue  # a later stage starts from what this one writes
                owner = f"{key} {place}" if other == name else f"{key} {place} of stage {other}"
                problems[f"{where}train.output {output} {relation} {owner}; choose a folder of its own"] = None
    return [*problems, *_shared_outputs(stages)]


def _places(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """The folders that a configuration names, by their keys."""
    for key, checkpoint in (
        ("student.checkpoint", config.student and config.student.checkpoint),
        ("teacher.checkpoint", config.teacher and config.teacher.checkpoint),
    ):
        # of a hub id there is no folder; a stage's student may not be there yet, but then its run's output is checked
        if checkpoint and Path(checkpoint).is_dir():
            yield key, Path(checkpoint)
    if isinstance(config.store.path, Path):
        yield "store.path", config.store.path
    if config.data.images is not None:
        yield "data.images", config.data.images


def _relation(output: Path, place: Path) -> str | None:
    """How two folders overlap, by their real paths; None where they are apart."""
    ours, theirs = output.resolve(), place.resolve()
    if ours == theirs:
        return "is"
    return "holds" if theirs.is_relative_to(ours) else "lies in" if ours.is_relative_to(theirs) else None


def _shared_outputs(stages: Mapping[str | None, RunConfig]) -> Iterator[str]:
    outputs = [(name, config.train.output) for name, config in stages.items() if config.train is not None]
    for number, (name, output) in enumerate(outputs):
        for before, other in outputs[:number]:
            if _relation(output, other) == "is":
                yield f"stages {before} and {name}: both have train.output {output}; give each its own"
            elif (relation := _relation(output, other)) is not None:
                yield f"stage {name}: train.output {output} {relation} {other} of stage {before}; give each its own"
