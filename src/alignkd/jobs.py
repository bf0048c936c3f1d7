"""Jobs for `alignkd.dump` and `alignkd.train`, from a configuration file, from keywords, or from both.

Sections and keys are those of the configuration file (docs/configuration.md), with the same checks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkd.pipeline.config.recipes import load_stage
from alignkd.pipeline.config.run_config import SECTIONS_OF, Command, RunConfig, checked_config, refusal
from alignkd.student_train.job import TrainJob
from alignkd.teacher_dump.job import DumpJob

# The keys of a section; `data` may be a list of them, one for each data set, and so may `store` of a training.
Section = Mapping[str, Any] | Sequence[Mapping[str, Any]]
LISTS = ("data", "store")


def dump_job(config: Path | str | None = None, *, stage: str | None = None, **sections: Section) -> DumpJob:
    """A job for `alignkd.dump`.

    Args:
        config: a configuration file, or None to give all sections as keywords.
        stage: which stage of a file of several.
        sections: `data`, `teacher` and `store`, each a mapping; their keys replace those of the file. A list of data
            sets replaces the whole section.

    Raises:
        InputError: one line that lists every problem.
    """
    return _config("dump", config, stage, sections).dump_job()


def train_job(config: Path | str | None = None, *, stage: str | None = None, **sections: Section) -> TrainJob:
    """A job for `alignkd.train`.

    Args:
        config: a configuration file, or None to give all sections as keywords.
        stage: which stage of a file of several.
        sections: `data`, `student`, `store` and `train`, each a mapping; their keys replace those of the file. `data`
            and `store` may be lists, which replace those of the file.

    Raises:
        InputError: one line that lists every problem.
    """
    return _config("train", config, stage, sections).train_job()


def _config(command: Command, path: Path | str | None, stage: str | None, sections: Mapping[str, Section]) -> RunConfig:
    if unknown := sorted(sections.keys() - set(SECTIONS_OF["run"])):
        raise TypeError(f"there is no section {unknown[0]!r}, expected {', '.join(SECTIONS_OF[command])}")
    for name, section in sections.items():
        is_list = name in LISTS and isinstance(section, list) and all(isinstance(entry, Mapping) for entry in section)
        if not isinstance(section, Mapping) and not is_list:
            expected = "a mapping of keys, or a list of them" if name in LISTS else "a mapping of keys"
            raise TypeError(f"section {name} is {section!r:.60}, expected {expected}")
    if stage is not None and path is None:
        raise TypeError(f"stage is {stage!r}, but there is no configuration file that has stages")
    given: dict[str, Any] = {
        name: dict(section) if isinstance(section, Mapping) else [dict(entry) for entry in section]
        for name, section in sections.items()
    }
    if path is not None:
        return load_stage(Path(path), command, stage, given)
    config, problems = checked_config(given, command)
    if config is None or problems:
        raise refusal(Path(f"{command}_job"), problems)
    return config
