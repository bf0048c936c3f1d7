"""Times of functions in alternating rounds, by CUDA's events on a GPU."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

WARM_UP = 2


def alternating(device: str, functions: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Name -> milliseconds of each round; every round calls each function once, in alternating order."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(WARM_UP + rounds):
        for name in (*functions,) if number % 2 else reversed(functions):
            spent = milliseconds(device, functions[name])
            if number >= WARM_UP:
                found[name].append(spent)
    return found


def milliseconds(device: str, function: Callable[[], None]) -> float:
    """Duration of one call, until the device has done it."""
    if device != "cuda":
        began = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - began)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def ratio(times: Mapping[str, list[float]], name: str, to: str) -> float:
    """Median of the ratios of two functions in the same rounds."""
    return round(median(mine / other for mine, other in zip(times[name], times[to], strict=True)), 3)
