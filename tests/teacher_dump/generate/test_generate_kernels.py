"""Answers with other kernels than torch's."""

from collections.abc import Callable
from pathlib import Path

import pytest
from kernels_on_cpu import use_toys
from written_answers import answers_of, entries_of

from alignkd.teacher_dump.generate.generate import generate_answers
from alignkd.teacher_dump.generate.job import GenerateJob
from alignkd.teacher_dump.operation.control import DumpControl


def test_the_same_answers(
    make_job: Callable[..., GenerateJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy ones. Layers are not compiled, and a notice states it."""
    use_toys(monkeypatch)
    texts, lines = {}, {}
    for kernels in ("torch", "liger", "compile"):
        notices: list[str] = []
        control = DumpControl(notice=notices.append)
        generate_answers(make_job(output=tmp_path / kernels, kernels=kernels, control=control))
        texts[kernels] = [answers_of(entry) for entry in entries_of(tmp_path / kernels)]
        lines[kernels] = [line for line in notices if line.startswith("kernels ")]
    assert texts["torch"] and texts["liger"] == texts["compile"] == texts["torch"]
    assert not lines["torch"] and "decoder layers of llama" in lines["liger"][0]
    assert lines["compile"] == ["kernels compile: layers are not compiled for generating; torch's kernels are used"]
