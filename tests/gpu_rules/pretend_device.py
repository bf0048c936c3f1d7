"""A device that is none: its tensors claim to be on `pretend:0` and are computed on the CPU, under CUDA's rules.

`register()` adds the device to torch and cannot be undone, so it is called in a process of its own alone. Inside
`pretend_device()` every operation of this thread, and of the backward passes it starts, is judged by `device_rules`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import pretend_streams
import torch
from device_rules import check_devices, mapped, operation, repeats, tensors_in, waits_for
from places import Place, asked_by_the_project, current_place
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"


@cache
def register() -> torch.device:
    """Make the device known to torch, once per process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=pretend_streams)
    return torch.device(NAME, 0)


@dataclass(frozen=True)
class Wait:
    """The host waits for the device."""

    reason: str
    place: Place

    def __str__(self) -> str:
        return f"{self.reason} at {self.place}"


@dataclass
class Log:
    """What happened on the device since the last `clear`."""

    waits: Counter[Wait] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    unrepeatable: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        """Begin anew."""
        self.unrepeatable.clear()
        self.waits.clear()
        self.operations.clear()

    def wait(self, reason: str) -> None:
        """Note that the host waits here."""
        self.waits[Wait(reason, current_place())] += 1


LOG = Log()


class PretendTensor(torch.Tensor):
    """A tensor of the device; `host` holds its values."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool = False) -> Self:
        """Take over a tensor of the host."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=register(),
            requires_grad=requires_grad,
        )
        made.host = host
        return made

    def __init__(self, host: Tensor, requires_grad: bool = False) -> None: ...

    @property
    def is_cuda(self) -> bool:
        """The project takes its way for CUDA; torch and DeepSpeed would look for the card."""
        return asked_by_the_project()

    @property
    def data(self) -> Tensor:
        """As of any tensor, but the values change with it."""
        return PretendTensor(self.host.detach())

    @data.setter
    def data(self, value: "PretendTensor") -> None:
        if not is_ours(value):
            raise TypeError(f"data of a tensor of the device set to one of {value.device} at {current_place()}")
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = value.host

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as CUDA refuses it."""
        raise TypeError(f"can't convert a tensor of the device to numpy at {current_place()}")

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        """Numbers of the host on the device; the host waits."""
        LOG.wait("numbers to the device")
        return PretendTensor(self.host.new_tensor(data, **options))

    def tolist(self) -> Any:
        """The values; the host waits."""
        LOG.wait("tolist")
        return self.host.tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An operation outside of `pretend_device()`: the same."""
        return run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _PythonData(TorchFunctionMode):
    """`torch.tensor(numbers, device=)`, which torch does not dispatch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is not torch.tensor or torch.device(options.get("device") or "cpu").type != NAME:
            return func(*args, **options)
        LOG.wait("numbers to the device")
        del options["device"]
        numbers = mapped(lambda value: value.item() if isinstance(value, PretendTensor) else value, args[0])
        return PretendTensor(func(numbers, *args[1:], **options))


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """A context in which tensors can be made on the device."""
    with _PythonData(), _Operations():
        yield register()


def move(module: nn.Module) -> None:
    """`module.to(device)` from the host: its parameters stay the same objects, though their type becomes another."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.to(register())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def is_ours(value: object) -> bool:
    """Whether it is a tensor of the device."""
    return isinstance(value, PretendTensor)


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One operation: judged, then computed on the host."""
    name, asked = operation(func), kwargs.get("device")
    goes_to = None if asked is None else torch.device(asked).type
    if not any(map(is_ours, tensors_in(args, kwargs))) and goes_to != NAME:
        return _on_host(func, args, kwargs)
    LOG.operations[name] += 1
    if not repeats(func, args):
        LOG.unrepeatable[f"{name} at {current_place()}"] += 1
    pretend_streams.queue_work()
    check_devices(func, args, kwargs, is_ours)
    for reason in waits_for(func, args, kwargs, is_ours):
        LOG.wait(reason)
    if name in CROSSINGS and (made := CROSSINGS[name](func, args, kwargs, goes_to)) is not None:
        return made
    return _computed(func, args, kwargs, stays=goes_to in (None, NAME))


def _on_host(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation that concerns the host alone, where page-locked memory is pretended, too."""
    if operation(func) in ("is_pinned", "_pin_memory"):
        if operation(func) == "is_pinned":
            return pretend_streams.is_page_locked(args[0])
        return pretend_streams.page_lock(args[0].clone())
    if not kwargs.get("pin_memory"):
        return func(*args, **kwargs)
    return pretend_streams.page_lock(func(*args, **{**kwargs, "pin_memory": False}))


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, stays: bool) -> Any:
    """The operation on the values; results are on the device where it `stays` there.

    A result of an operation in place is the tensor that was given. A view has a wrapper of its own: what both share is
    the memory behind `host`.
    """
    assert torch.Tag.inplace_view not in func.tags, f"{func}: shape and strides of a wrapper cannot be changed in place"
    ours = {id(tensor.host): tensor for tensor in tensors_in(args, kwargs) if isinstance(tensor, PretendTensor)}
    on_host = {name: torch.device("cpu") if name == "device" else value for name, value in kwargs.items()}
    found = _kernel(func)(*mapped(_values, args), **mapped(_values, on_host))

    def result(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return ours.get(id(value)) if id(value) in ours else PretendTensor(value) if stays else value

    return mapped(result, found)


def _values(value: Any) -> Any:
    return value.host if isinstance(value, PretendTensor) else value


def _kernel(func: Any) -> Callable[..., Any]:
    return _mm_in_float32 if func is torch.ops.aten.mm.dtype else func


def _mm_in_float32(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """`mm(out_dtype=)`, which torch has for CUDA alone."""
    return left.to(dtype) @ right.to(dtype)


def _copy_(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], goes_to: str | None) -> Any:
    """`copy_` between device and host."""
    into, source = args[:2]
    if is_ours(into) == is_ours(source):
        return None
    flies = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    host = source if is_ours(into) else into
    if not (flies and pretend_streams.is_page_locked(host)):
        LOG.wait("copy_ to the device" if is_ours(into) else "copy_ to the host")
    elif is_ours(source):
        return pretend_streams.copy_later(into, source.host)
    _values(into).copy_(_values(source))
    return into


def _to_copy(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], goes_to: str | None) -> Any:
    """`to` between device and host."""
    (source,), options = args, {**kwargs, "device": torch.device("cpu")}
    flies = options.pop("non_blocking", False)
    if is_ours(source) == (goes_to in (None, NAME)):
        return None
    if not is_ours(source):
        if not (flies and pretend_streams.is_page_locked(source)):
            LOG.wait("to the device")
        return PretendTensor(func(source.clone(), **options))
    if flies:  # torch copies into page-locked memory then
        converted = source.host.to(options.get("dtype", source.dtype))
        into = pretend_streams.page_lock(torch.empty_like(converted))
        return pretend_streams.copy_later(into, converted, keep=True)
    LOG.wait("to the host")
    return func(source.host, **options).clone()


CROSSINGS: dict[str, Callable[..., Any]] = {"copy_": _copy_, "_to_copy": _to_copy}
