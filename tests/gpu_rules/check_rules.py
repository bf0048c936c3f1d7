"""Each rule with something wrong that it must find, and with the right thing, which passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from device_rules import MixedDevicesError
from known_waits import Known, unknown, unmet
from pretend_device import LOG, PretendTensor
from torch import Tensor

Make = Callable[..., Tensor]


def numbers(*shape: int, device: Any = "cpu") -> Tensor:
    """1, 2, 3 and so on."""
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel(), device=device).reshape(shape)


MIXED: dict[str, Callable[[torch.device], Any]] = {
    "add": lambda at: numbers(3, device=at) + numbers(3),
    "add in place": lambda at: numbers(3).add_(numbers(3, device=at)),
    "matmul": lambda at: numbers(2, 2, device=at) @ numbers(2, 2),
    "cat": lambda at: torch.cat([numbers(3, device=at), numbers(3)]),
    "gather": lambda at: numbers(3, 2, device=at).gather(1, torch.zeros(3, 1, dtype=torch.int64)),
    "embedding": lambda at: torch.nn.functional.embedding(torch.zeros(2, dtype=torch.int64), numbers(3, 2, device=at)),
    "index of the device into the host": lambda at: numbers(3)[torch.zeros(2, dtype=torch.int64, device=at)],
    "values of the host": lambda at: numbers(3, device=at).index_put_(
        (torch.zeros(1, dtype=torch.int64, device=at),), numbers(1)
    ),
    "a number of the host in a matrix product": lambda at: torch.addmm(
        numbers(), numbers(2, 2, device=at), numbers(2, 2, device=at)
    ),
    "a number of the host that is written": lambda at: numbers().add_(numbers(device=at)),
    "a list": lambda at: torch._foreach_add(
        [numbers(3, device=at), numbers(3, device=at)], [numbers(3, device=at), numbers(3)]
    ),
    "a list and a number of the host": lambda at: torch._foreach_mul([numbers(3, device=at)], numbers()),
    "lists of numbers": lambda at: torch._foreach_add([numbers(device=at)], [numbers()]),
}
SOUND: dict[str, Callable[[torch.device], Any]] = {
    "add": lambda at: numbers(3, device=at) + numbers(3, device=at),
    "a number of the host": lambda at: numbers(3, device=at) * numbers(),
    "where": lambda at: torch.where(numbers(3, device=at) > 1, numbers(3, device=at), numbers()),
    "lists": lambda at: torch._foreach_add([numbers(3, device=at)], [numbers(3, device=at)]),
    "lists of the host": lambda at: torch._foreach_add([numbers(3)], [numbers(3)]),
    "slices": lambda at: numbers(3, 3, device=at)[1:, 0].exp().sum(),
    "page-locked": lambda at: numbers(3).pin_memory().to(at, non_blocking=True),
    "a part of what is page-locked": lambda at: numbers(4).pin_memory()[1:3].to(at, non_blocking=True),
    "index of the device": lambda at: numbers(3, device=at)[torch.zeros(2, dtype=torch.int64, device=at)],
}
WAITING: dict[str, tuple[str, Callable[[torch.device], Any]]] = {
    "item": ("_local_scalar_dense", lambda at: numbers(device=at).item()),
    "if": ("_local_scalar_dense", lambda at: bool(numbers(device=at) > 1)),
    "tolist": ("tolist", lambda at: numbers(3, device=at).tolist()),
    "cpu": ("to the host", lambda at: numbers(3, device=at).cpu()),
    "to": ("to the device", lambda at: numbers(3).to(at)),
    "not page-locked": ("to the device", lambda at: numbers(3).to(at, non_blocking=True)),
    "copy_ up": ("copy_ to the device", lambda at: numbers(3, device=at).copy_(numbers(3))),
    "copy_ down": ("copy_ to the host", lambda at: numbers(3).copy_(numbers(3, device=at))),
    "tensor": ("numbers to the device", lambda at: torch.tensor([1, 2], device=at)),
    "new_tensor": ("numbers to the device", lambda at: numbers(3, device=at).new_tensor([1, 2])),
    "nonzero": ("nonzero", lambda at: numbers(3, device=at).nonzero()),
    "masked_select": ("masked_select", lambda at: numbers(3, device=at).masked_select(numbers(3, device=at) > 1)),
    "mask": ("boolean index", lambda at: numbers(3, device=at)[numbers(3, device=at) > 1]),
    "index of the host": ("index of the host", lambda at: numbers(3, device=at)[torch.zeros(2, dtype=torch.int64)]),
    "allclose": ("allclose", lambda at: torch.allclose(numbers(3, device=at), numbers(3, device=at))),
    "repeats": (
        "repeat_interleave without output_size",
        lambda at: torch.repeat_interleave(torch.tensor([1, 2]).pin_memory().to(at, non_blocking=True)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices_are_refused(name: str, device: torch.device) -> None:
    with pytest.raises(MixedDevicesError, match="of tensors of the device and of the host"):
        MIXED[name](device)


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_passes_without_a_wait(name: str, device: torch.device) -> None:
    SOUND[name](device)
    assert not LOG.waits


@pytest.mark.parametrize("name", WAITING)
def test_a_wait_is_noted(name: str, device: torch.device) -> None:
    reason, work = WAITING[name]
    work(device)
    assert [wait.reason for wait in LOG.waits] == [reason]


@pytest.mark.parametrize(
    ("work", "found"),
    [
        (lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 2).sum().backward(), {"_adaptive_avg_pool2d_backward"}),
        (lambda x: torch.nn.functional.avg_pool2d(x, 2).sum().backward(), set()),
        (lambda x: x.detach().cumsum(0), {"cumsum"}),
        (lambda x: (x > 1).long().cumsum(0), set()),
    ],
)
def test_what_torch_cannot_repeat_is_noted(
    work: Callable[[Tensor], Any], found: set[str], device: torch.device
) -> None:
    work(numbers(1, 1, 4, 4, device=device).requires_grad_())
    assert {name.split(" at ")[0] for name in LOG.unrepeatable} == found


def test_numpy_is_refused(device: torch.device) -> None:
    with pytest.raises(TypeError, match="can't convert"):
        numbers(3, device=device).numpy()


@pytest.mark.parametrize("step_on", ["cpu", "pretend"])
def test_fused_adamw_wants_its_step_on_the_device(step_on: str, device: torch.device) -> None:
    weight = numbers(3, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([weight], fused=True)
    moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[weight] = {"step": torch.zeros((), device=step_on), **moments}
    weight.grad = torch.ones_like(weight)
    if step_on == "pretend":
        optimizer.step()
        assert optimizer.state[weight]["step"].item() == 1
        return
    with pytest.raises(MixedDevicesError, match=r"_fused_adamw_"):
        optimizer.step()


def test_a_copy_to_the_host_that_nobody_waits_for_holds_nothing(device: torch.device) -> None:
    early = numbers(3, device=device).to("cpu", non_blocking=True)
    assert early.isnan().all()
    late = numbers(3, device=device).to("cpu", non_blocking=True)
    torch.get_device_module(device).current_stream().record_event().synchronize()
    assert late.tolist() == [1, 2, 3]


def test_gradients_and_views_are_those_of_the_cpu(device: torch.device) -> None:
    def work(at: Any) -> Tensor:
        leaf = numbers(4, 6, device=at).requires_grad_()
        middle = leaf.view(2, 2, 6).transpose(0, 1).contiguous()
        middle[0].mul_(3)
        (middle.softmax(-1) * middle[..., :1].exp()).log().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    there = work(device)
    assert isinstance(there, PretendTensor)
    torch.testing.assert_close(there.host, work("cpu"))


def test_a_wait_of_the_project_is_named_by_file_and_line(device: torch.device) -> None:
    from alignkd.student_train.losses.attention.squared_error import length_mask

    length_mask([1, 2], 3, numbers(1, device=device))
    (wait,) = LOG.waits
    assert (wait.place.file, wait.place.function) == ("student_train/losses/attention/squared_error.py", "length_mask")
    assert f"squared_error.py:{length_mask.__code__.co_firstlineno + 7} " in str(wait)
    known = Known(wait.place.file, wait.place.function, wait.reason, 1, "it is tried")
    assert unknown(LOG.waits, [known], 1) == [] and unmet(LOG.waits, [known]) == []
    assert unknown(LOG.waits, [], 1) == [f"1 waits that are not listed: {wait}"]
    length_mask([1, 2], 3, numbers(1, device=device))
    assert unknown(LOG.waits, [known], 1) == [f"2 waits in 1 units, listed are 1 each: {wait}"]
    assert unmet({}, [known]) == [known]
