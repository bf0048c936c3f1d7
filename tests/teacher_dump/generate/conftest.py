"""Jobs that let the golden teacher answer the questions of the golden samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.teacher_dump.generate.job import GenerateJob
from alignkd.teacher_dump.generate.settings import GenerateConfig
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import Answers, DataSet

MakeGenerateJob = Callable[..., GenerateJob]
TEACHER_SETTINGS = ("batch", "token_budget", "window", "data_workers", "kernels")


def without_answers(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "conversations": [turn for turn in entry["conversations"] if turn["from"] != "gpt"]}


@pytest.fixture
def questions(golden: Path) -> list[dict[str, Any]]:
    """The golden samples without their answers: three with an image, one of several questions, one text-only."""
    return [without_answers(entry) for entry in json.loads((golden / "v1.json").read_text())]


@pytest.fixture
def make_job(golden: Path, golden_images: Path, tmp_path: Path, questions: list[dict[str, Any]]) -> MakeGenerateJob:
    """`make_job(entries=None, **settings of teacher and generation)`: a job over the questions, into tmp_path/out."""

    def make(
        entries: list[dict[str, Any]] | None = None,
        *,
        answers_of_data: Answers = "missing",
        control: DumpControl | None = None,
        max_tokens: int | None = 2048,
        **settings: Any,
    ) -> GenerateJob:
        data = tmp_path / "questions.json"
        data.write_text(json.dumps(questions if entries is None else entries))
        given = {name: settings.pop(name) for name in TEACHER_SETTINGS if name in settings}
        return GenerateJob(
            data=(DataSet(path=data, images=golden_images, answers=answers_of_data),),
            template="v1",
            max_tokens=max_tokens,
            teacher=TeacherConfig(
                checkpoint=str(golden / "teacher"), vision_config=golden / "clip", **{"batch": 3, **given}
            ),
            generate=GenerateConfig(
                **{"output": tmp_path / "out", "shard_size": 2, "max_new_tokens": 4, **settings},
            ),
            control=control or DumpControl(),
        )

    return make
