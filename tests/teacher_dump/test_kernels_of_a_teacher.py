"""Kernels beside torch's in a dump: the same manifest, the same targets up to rounding."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernels_on_cpu import kernels_on_cpu  # noqa: F401 - a fixture

from alignkd.storage import StoreReader
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl

pytestmark = pytest.mark.usefixtures("kernels_on_cpu")


@pytest.mark.parametrize("kernels", ["liger", "compile"])
def test_a_store(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory, exact_store: Path, kernels: Any) -> None:
    notices: list[str] = []
    job = make_job(control=DumpControl(notice=notices.append))
    dump(replace(job, teacher=job.teacher.model_copy(update={"kernels": kernels})))
    reader, expected = StoreReader(job.store.path), StoreReader(exact_store)
    assert [line for line in notices if line.startswith(f"kernels {kernels}")]
    assert (job.store.path / "manifest.json").read_bytes() == (exact_store / "manifest.json").read_bytes()
    for number in range(len(reader)):
        for name in ("logits", "attention", "vision_top_index"):
            target, reference = getattr(reader[number], name), getattr(expected[number], name)
            assert (target is None) == (reference is None)
            if target is not None:
                np.testing.assert_allclose(target, reference, atol=1e-4, err_msg=name)
