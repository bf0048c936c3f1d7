"""What CUDA refuses, and what it waits for: the rules by which an operation on the pretend device is judged.

The rules are CUDA's as torch applies them:

* All tensors of an operation are on one device. A pointwise operation may read a 0-dim tensor of the host, which its
  kernel takes as a number. No other may, such as the fused and the `_foreach` kernels of an optimiser.
* An index of the host may index a tensor of the device: torch copies the index, and waits.
* Copies may cross. The host waits for one unless it is `non_blocking` and the memory of the host is page-locked.
* An operation whose result the host needs, as a number or as a shape, waits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from places import current_place
from torch import Tensor

COPIES = {"_to_copy", "copy_", "copy", "set_", "lift_fresh"}
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
WAITING = {
    "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "masked_scatter_backward",
    "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip
# What torch.use_deterministic_algorithms refuses on CUDA, as its documentation lists it; `cumsum` of floats alone.
REFUSED_IF_DETERMINISTIC = {
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d",
    "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "nll_loss_forward", "nll_loss2d_forward", "_ctc_loss_backward",
    "_embedding_bag_backward", "put_", "histc", "bincount", "median", "kthvalue", "grid_sampler_2d_backward",
    "grid_sampler_3d_backward", "cumsum",
}  # fmt: skip
LISTS = ("_foreach_", "_fused_", "_amp_foreach_")
MASKS = (torch.bool, torch.uint8)


class MixedDevicesError(RuntimeError):
    """An operation of tensors of the device and of the host that CUDA refuses."""


@cache
def operation(func: Any) -> str:
    """`add` of `aten::add.Tensor`."""
    return str(func._schema.name).rpartition("::")[2]


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of an operation, those in lists, too."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value, {})


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The function of each value in the arguments, or in the result, of an operation."""
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, one) for one in value)
    if isinstance(value, dict):
        return {name: mapped(function, one) for name, one in value.items()}
    return function(value)


def check_devices(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_ours: Any) -> None:
    """Refuse what CUDA refuses.

    Args:
        is_ours: whether a tensor is on the pretend device.

    Raises:
        MixedDevicesError: names operation, shapes of the tensors of the host, and place.
    """
    name, tensors = operation(func), [*tensors_in(args, kwargs)]
    hosts = [tensor for tensor in tensors if not is_ours(tensor)]
    if name in COPIES or not hosts or len(hosts) == len(tensors):
        return
    if name in INDEXING and is_ours(args[0]) and all(is_ours(value) for value in args[2:] if isinstance(value, Tensor)):
        return
    reads_numbers = torch.Tag.pointwise in func.tags and not name.startswith(LISTS)
    if reads_numbers and not any(tensor.dim() for tensor in hosts) and not _writes_to(func, args, kwargs, hosts):
        return
    shapes = [tuple(tensor.shape) for tensor in hosts]
    raise MixedDevicesError(f"{func} of tensors of the device and of the host, {shapes}, at {current_place()}")


def waits_for(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_ours: Any) -> Iterator[str]:
    """Why the host waits for the device in this operation; copies are judged where they are made."""
    name = operation(func)
    if not any(map(is_ours, tensors_in(args, kwargs))):
        return
    if name in WAITING:
        yield name
    if name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in MASKS for index in indices):
            yield "boolean index"
        if not all(is_ours(index) for index in indices):
            yield "index of the host"
    if name == "repeat_interleave" and is_ours(args[0]) and kwargs.get("output_size") is None:
        yield "repeat_interleave without output_size"


def repeats(func: Any, args: Sequence[Any]) -> bool:
    """Whether torch has a form of this operation for CUDA that repeats to the bit."""
    name = operation(func)
    return name not in REFUSED_IF_DETERMINISTIC or (name == "cumsum" and not args[0].is_floating_point())


def _writes_to(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], hosts: Sequence[Tensor]) -> bool:
    """Whether one of the tensors of the host is written."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | dict(kwargs)
    written = [given.get(a.name) for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return any(tensor is host for tensor in tensors_in(written, {}) for host in hosts)
