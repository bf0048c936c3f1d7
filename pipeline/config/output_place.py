"""Checks that `train.output` and `eval.out` are separate folders, so that a run and its removal affect nothing else.

Only paths are compared, before the teacher runs. The content of the folder is checked when the run claims it
(`student_train/run/output/claim.py`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.sections.store_list import ListedStores
from alignkd.student_train.output import checkpoints_folder, student_folder


def output_problems(stages: Mapping[str | None, RunConfig]) -> list[str]:
    """One line for each `train.output` that is, contains or lies in a folder with another purpose.

    An output inside the image folder is allowed: images are found by the names in the data, so such a run neither
    reads nor writes any of them.

    Args:
        stages: name -> configuration; the name is None in a file without stages.
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
                    continue  # a later stage starts from the student of this one
                owner = f"{key} {place}" if other == name else f"{key} {place} of stage {other}"
                problems[f"{where}train.output {output} {relation} {owner}; choose a separate folder"] = None
    return [*problems, *_shared_outputs(stages), *_evaluation_problems(stages)]


def _places(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """Key and folder of every folder that a configuration names."""
    for key, checkpoint in (
        ("student.checkpoint", config.student and config.student.checkpoint),
        ("teacher.checkpoint", config.teacher and config.teacher.checkpoint),
    ):
        # a hub id has no folder; a student that does not exist yet lies in an output, which is checked itself
        if checkpoint and Path(checkpoint).is_dir():
            yield key, Path(checkpoint)
    if isinstance(config.store, ListedStores):
        stores = [(f"store.{number}.path", store.path) for number, store in enumerate(config.store.stores)]
    else:
        stores = [("store.path", config.store.path)]
    for key, path in stores:
        if isinstance(path, Path):
            yield key, path
    for data in config.data:
        if data.images is not None:
            yield "data.images", data.images
    if config.generate is not None:
        yield "generate.output", config.generate.output
    validation = None if config.train is None else config.train.validation
    if validation is not None and isinstance(validation.store, Path):
        yield "train.validation.store", validation.store


def _relation(output: Path, place: Path) -> str | None:
    """How two folders overlap, by their real paths; None if they do not."""
    ours, theirs = output.resolve(), place.resolve()
    if ours == theirs:
        return "is"
    return "contains" if theirs.is_relative_to(ours) else "lies in" if ours.is_relative_to(theirs) else None


def _shared_outputs(stages: Mapping[str | None, RunConfig]) -> Iterator[str]:
    outputs = [(name, config.train.output) for name, config in stages.items() if config.train is not None]
    for number, (name, output) in enumerate(outputs):
        for before, other in outputs[:number]:
            if _relation(output, other) == "is":
                yield f"stages {before} and {name}: both have train.output {output}; give each its own"
            elif (relation := _relation(output, other)) is not None:
                yield f"stage {name}: train.output {output} {relation} {other} of stage {before}; give each its own"


def _evaluation_problems(stages: Mapping[str | None, RunConfig]) -> Iterator[str]:
    """One line for each `eval.out` that is, contains or lies in a folder with another purpose, except `train.output`.

    It may lie in the output of its own run, beside student and checkpoints.
    """
    folders = {name: config.eval.out for name, config in stages.items() if config.eval is not None and config.eval.out}
    for name, folder in folders.items():
        where = "" if name is None else f"stage {name}: "
        for other, of_other in stages.items():
            owner = "" if other == name else f" of stage {other}"
            for key, place in _places_of_evaluation(of_other, folders.get(other) if other != name else None):
                relation = _relation(folder, place)
                if relation is None or (key == "train.output" and relation == "lies in" and other == name):
                    continue
                yield f"{where}eval.out {folder} {relation} {key} {place}{owner}; choose a separate folder"
                return


def _places_of_evaluation(config: RunConfig, folder: Path | None) -> Iterator[tuple[str, Path]]:
    yield from _places(config)
    if folder is not None:
        yield "eval.out", folder
    if config.eval is not None:
        yield "eval.data", config.eval.data
        if config.eval.baseline is not None and Path(config.eval.baseline).is_dir():
            yield "eval.baseline", Path(config.eval.baseline)
    if config.train is not None:
        output = config.train.output
        yield "train.output", output
        yield "the student", student_folder(output)
        yield "the checkpoints", checkpoints_folder(output)
