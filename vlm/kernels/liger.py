"""Kernels of the library Liger in the layers of one decoder: RMSNorm, rotary positions, gated MLP.

Liger's own functions for models of transformers (`apply_liger_kernel_to_llama` and others) are not used. They replace
classes and functions in the modules of transformers, so they change every model of the process, and they follow single
versions of transformers. Here modules get forward functions of their own, which call Liger's functions, and nothing
outside the decoder's layers changes.

What Liger does in place is kept away from tensors that others may hold. It would rotate queries and keys in the memory
of the projections' outputs, which are recorded for the attention loss; they are copied before. It would write the
gradient of a norm's input over that of its output; it gets memory of its own. It does overwrite the outputs of gate and
up projections in the backward pass, so there can be only one through the same graph.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.kernels.comparison import Part, largest_difference, limit_of

ROTARY = "apply_rotary_pos_emb"
INSTEAD = "set kernels to 'torch' or 'compile'"


@dataclass(frozen=True)
class Norm:
    """What an RMSNorm computes: `(offset + weight) * x / rms(x)`.

    Attributes:
        offset: added to the weight.
        casting: `llama` multiplies by the weight in the dtype of the input, `gemma` in float32.
    """

    offset: float
    casting: str


LLAMA, GEMMA = Norm(0.0, "llama"), Norm(1.0, "gemma")
# By `model_type` of the decoder. Rotary positions of these rotate halves of a head, as Liger's do.
DECODERS = {
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "llama": LLAMA,
    "ministral3": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen2_5_vl_text": LLAMA,
    "qwen2_vl_text": LLAMA,
    "qwen3": LLAMA,
    "qwen3_vl_text": LLAMA,
    "smollm3": LLAMA,
}


# Liger's functions for `act(gate) * up`, by the class of the activation
GATED = {"SiLU": "liger_swiglu", "SiLUActivation": "liger_swiglu", "GELUTanh": "liger_geglu"}


def check_liger(device: torch.device) -> None:
    """Refuse a device or an installation that cannot run Liger's kernels.

    Raises:
        InputError: no CUDA device, no Liger, or no Triton.
    """
    check_liger_installed(device.type)
    try:
        _functions()
    except ImportError as error:
        raise _missing(one_line(error)[:120]) from error


def check_liger_installed(device_type: str) -> None:
    """The same without importing Liger.

    Raises:
        InputError: as `check_liger`.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    if device_type != "cuda":
        raise InputError(f"kernels 'liger' need a CUDA device, found {device_type}; {INSTEAD}")
    if missing := [name for name in ("liger_kernel", "triton") if find_spec(name) is None]:
        raise _missing(f"no module {' and no '.join(missing)}")


def _missing(what: str) -> InputError:
    return InputError(
        f"kernels 'liger' need liger-kernel and triton ({what}); `pip install 'alignkd[kernels]'`, or {INSTEAD}"
    )


def use_liger(decoder: nn.Module | None, layers: Sequence[nn.Module]) -> str:
    """Use Liger's kernels in these layers of a decoder, after a comparison of each part with torch's.

    Args:
        decoder: on its device; called with a few embeddings. None: not one of transformers.

    Raises:
        InputError: this kind of decoder is not known here, or a part differs by more than rounding.
    """
    kind = getattr(getattr(decoder, "config", None), "model_type", None)
    if decoder is None or kind not in DECODERS:
        raise InputError(
            f"kernels 'liger' are not available for a decoder of model_type {kind!r}, only for "
            f"{', '.join(DECODERS)}; {INSTEAD}"
        )
    parts = [part for layer in layers for part in _parts(layer, DECODERS[kind], kind)]
    limit = limit_of(decoder)
    difference, worst = largest_difference(decoder, parts)
    if not difference <= limit:  # NaN too
        raise InputError(
            f"kernels 'liger': {type(worst.module).__name__} of model_type {kind!r} differs from torch's by "
            f"{difference:.1e}, limit {limit:.0e}, with liger-kernel {_version('liger-kernel')} and transformers "
            f"{_version('transformers')}; {INSTEAD}"
        )
    for part in parts:
        part.bind()
    return (
        f"kernels liger {_version('liger-kernel')}: {len(layers)} decoder layers of {kind}, difference from torch at "
        f"most {difference:.1e} (limit {limit:.0e})"
    )


def _parts(layer: nn.Module, norm: Norm, kind: str) -> list[Part]:
    """The modules of a layer that are computed by Liger.

    Raises:
        InputError: the layer is not built as those of this kind of decoder.
    """
    norms = [module for module in layer.modules() if type(module).__name__.endswith("RMSNorm")]
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    activation = type(getattr(mlp, "act_fn", None)).__name__
    rotated = None if attention is None else _with_other_rotary(attention)
    if not norms or rotated is None or activation not in GATED:
        raise InputError(
            f"kernels 'liger': a layer of model_type {kind!r} has {len(norms)} RMSNorm, rotary positions that "
            f"{'cannot' if rotated is None else 'can'} be replaced and the activation {activation}, expected norms, "
            f"replaceable positions and one of {', '.join(GATED)}; {INSTEAD}"
        )
    assert attention is not None and mlp is not None
    return [
        *(Part(module, partial(_norm, module, norm)) for module in norms),
        Part(attention, rotated),
        Part(mlp, partial(_mlp, mlp, GATED[activation])),
    ]


def _norm(module: Any, norm: Norm, hidden: Tensor) -> Tensor:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    # the last argument: not in place
    result: Tensor = _functions().liger_rms_norm(hidden, module.weight, eps, norm.offset, norm.casting, False)
    return result


def _mlp(module: Any, name: str, hidden: Tensor) -> Tensor:
    result: Tensor = module.down_proj(getattr(_functions(), name)(module.gate_proj(hidden), module.up_proj(hidden)))
    return result


def _rotary(query_BHLd: Tensor, key_BKLd: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    query_BHLd, key_BKLd = query_BHLd.clone(), key_BKLd.clone()  # see the module's first lines
    with torch.cuda.device_of(query_BHLd):  # Liger launches this kernel on the current device
        rotated: tuple[Tensor, Tensor] = _functions().liger_rope(query_BHLd, key_BKLd, cos, sin)
    return rotated


def _with_other_rotary(attention: nn.Module) -> Callable[..., Any] | None:
    """The forward function of an attention module with Liger's rotary positions; None if it has none of that name.

    It finds the function in the module of transformers, which other models use, so it is copied with another table of
    global names.
    """
    own: Any = type(attention).forward
    if not isinstance(own, FunctionType) or ROTARY not in own.__code__.co_names:
        return None
    names = {**own.__globals__, ROTARY: _rotary}
    other = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
    other.__kwdefaults__ = own.__kwdefaults__
    return MethodType(other, attention)


def _functions() -> Any:
    from liger_kernel.transformers import functional

    return functional


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # on the path, not installed
        return "(unknown version)"
