"""Kernels beside torch's in a dump: the same manifest, the same targets up to rounding."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels_on_cpu import kernels_on_cpu  # noqa: F401 - a fixture

from alignkd.storage import StoreReader
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.vlm.errors import InputError

pytestmark = pytest.mark.usefixtures("kernels_on_cpu")


def test_stores(make_job: Callable[..., DumpJob], tmp_path: Path) -> None:
    readers: dict[str, StoreReader] = {}
    kinds: tuple[Any, ...] = ("torch", "liger", "compile")
    for kernels in kinds:
        notices: list[str] = []
        job = make_job(path=tmp_path / kernels, control=DumpControl(notice=notices.append))
        dump(replace(job, teacher=job.teacher.model_copy(update={"kernels": kernels})))
        named = [line for line in notices if line.startswith("kernels ")]
        assert len(named) == (kernels != "torch") and all(kernels in line for line in named)
        readers[kernels] = StoreReader(job.store.path)
    expected = readers.pop("torch")
    for kernels, reader in readers.items():
        assert (tmp_path / kernels / "manifest.json").read_bytes() == (tmp_path / "torch/manifest.json").read_bytes()
        for number in range(len(expected)):
            found, reference = reader[number], expected[number]
            np.testing.assert_allclose(found.logits, reference.logits, atol=1e-4)
            assert (found.attention is None) == (reference.attention is None)
            if reference.attention is not None:
                np.testing.assert_allclose(found.attention, reference.attention, atol=1e-5)


def test_a_device_without_them(make_job: Callable[..., DumpJob], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the teacher is loaded; no store is left behind."""
    monkeypatch.delenv("TRITON_INTERPRET")
    job = make_job()
    with pytest.raises(InputError, match=r"^kernels 'liger' need a CUDA device, found cpu"):
        dump(replace(job, teacher=job.teacher.model_copy(update={"kernels": "liger"})))
    assert not job.store.path.exists()
