"""The teacher's output head in a store: both readers give the logits of the head that was written."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alignkd.storage.read.lm_head import LmHead
from alignkd.vlm.families.family import Head
from alignkd.vlm.stem.teacher_head import head_bytes, read_head

V, D = 11, 6
# bytes of a head that is a matrix only, as earlier versions wrote them
PLAIN = "matrix"


def heads() -> dict[str, dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    bias_V = torch.randn(V, generator=generator)
    return {
        PLAIN: {},
        "bias": {"bias_V": bias_V},
        "scale": {"scale": 0.125},
        "soft cap": {"softcap": 1.5},
        "all": {"bias_V": bias_V, "scale": 3.0, "softcap": 0.75},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", heads())
def test_both_readers_give_the_logits(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    weight_VD, states_ND = torch.randn(V, D, generator=generator).to(dtype), torch.randn(5, D, generator=generator)
    head = Head(weight_VD=weight_VD, **heads()[kind])
    path = tmp_path / "lm_head.safetensors"
    path.write_bytes(head_bytes(head))

    found = read_head(path, vocab_size=V, hidden_size=D)
    assert torch.equal(found.weight_VD, weight_VD) and found.weight_VD.dtype == dtype
    assert (found.scale, found.softcap) == (head.scale, head.softcap)
    bias_V = 0 if head.bias_V is None else head.bias_V
    expected_NV = head.scale * (states_ND @ weight_VD.float().T + bias_V)
    if head.softcap is not None:
        expected_NV = head.softcap * (expected_NV / head.softcap).tanh()
    manifest: Any = SimpleNamespace(shapes=SimpleNamespace(vocab_size=V, hidden_size=D))
    in_numpy = LmHead(path, manifest)
    np.testing.assert_allclose(in_numpy.logits(states_ND.numpy()), expected_NV, rtol=1e-5, atol=1e-6)
    if dtype == torch.float32:
        torch.testing.assert_close(found(states_ND), expected_NV, rtol=1e-5, atol=1e-6)

    error = 0.01
    moved_NV = in_numpy.logits((states_ND + error).numpy())
    bound_NV = in_numpy.error_bound(np.full((5, D), error, np.float32))
    assert (np.abs(moved_NV - expected_NV.numpy()) <= bound_NV * 1.001 + 1e-5).all()


def test_a_matrix_alone_has_the_bytes_of_before() -> None:
    from safetensors.torch import save

    weight_VD = torch.arange(V * D, dtype=torch.float32).view(V, D)
    expected = save({"lm_head.weight": weight_VD})
    assert hashlib.sha256(head_bytes(Head(weight_VD=weight_VD))).digest() == hashlib.sha256(expected).digest()
