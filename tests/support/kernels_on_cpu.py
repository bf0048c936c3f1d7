"""Kernels beside torch's on the CPU, without Triton and without the generation of machine code."""

from collections.abc import Iterator

import pytest
import torch
import toy_liger

from alignkd.vlm.kernels import compiled, liger


def use_toys(patch: pytest.MonkeyPatch) -> None:
    """Liger's functions are those of `toy_liger`; compiled layers are the compiler's graphs, run by torch's kernels."""
    patch.setenv("TRITON_INTERPRET", "1")
    patch.setattr(liger, "_functions", lambda: toy_liger)
    patch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.fixture(scope="module")
def kernels_on_cpu() -> Iterator[None]:
    """For all tests of a file, which share what is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        use_toys(patch)
        yield
    torch.compiler.reset()
