"""The configuration of `alignkd generate`: data, teacher and answers; other sections of the file are not read."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignkd.pipeline.config.problems import problem_of
from alignkd.pipeline.config.run_config import SECTIONS_OF, DataAndTeacher, read_yaml, refusal, without_index
from alignkd.teacher_dump.generate.job import GenerateJob
from alignkd.teacher_dump.generate.settings import GenerateConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.errors import InputError

_NOT_READ = (frozenset(SECTIONS_OF["run"]) | {"eval"}) - frozenset(SECTIONS_OF["generate"])


class AnswersConfig(DataAndTeacher):
    """The sections that `alignkd generate` reads."""

    teacher: TeacherConfig
    generate: GenerateConfig

    def job(self) -> GenerateJob:
        """The job of a generation."""
        return GenerateJob(
            data=self.data_sets,
            template=self.template,
            max_tokens=self.max_tokens,
            teacher=self.teacher,
            generate=self.generate,
        )


def load_answers_config(path: Path) -> AnswersConfig:
    """Read and check the sections for `alignkd generate`.

    Raises:
        InputError: one line with every problem of the file.
    """
    values = read_yaml(path)
    if "stages" in values:
        raise InputError(
            f"{path}: has stages, but alignkd generate takes a file without; write its sections to another"
        )
    read = {name: section for name, section in values.items() if name not in _NOT_READ}
    missing = [name for name in SECTIONS_OF["generate"] if read.get(name) is None]
    problems = [
        f"{name}: section is {'empty' if name in values else 'missing'}, alignkd generate needs it" for name in missing
    ]
    try:
        config = AnswersConfig.model_validate(read)
    except ValidationError as error:
        problems += [
            _line(dict(item), values) for item in error.errors() if item["loc"][:1] not in {(m,) for m in missing}
        ]
        raise refusal(path, problems) from None
    return config


def _line(error: dict[str, Any], values: dict[str, Any]) -> str:
    return problem_of(without_index(error, values), AnswersConfig)
