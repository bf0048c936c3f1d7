"""A golden case of an objective: inputs, expected values, expected gradients; and how far a result is from them.

`N.safetensors` holds `in.NAME` (inputs, float64 where they are floats) and `grad.KEY` (expected gradients). `N.json`
holds the expected values by key, numbers, lists or nested dictionaries, and parameters such as `group_size`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# An expected value below it is compared absolutely, in units of it: rounding errors of a sum that is 0 are no error.
SMALLEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Attributes:
        path: without a suffix.
        inputs: by name, without `in.`; floating tensors have the dtype of the evaluation.
        expected: by key: values, and parameters of the case.
        gradients: expected gradients by key, without `grad.`.
    """

    path: Path
    inputs: Mapping[str, Tensor]
    expected: Mapping[str, Any]
    gradients: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: Path, dtype: torch.dtype = torch.float64) -> "Case":
        """Read `path.safetensors` and `path.json`; floating inputs are converted to `dtype`."""
        tensors = load_file(path.with_suffix(".safetensors"))
        inputs = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("in.")}
        return cls(
            path=path,
            inputs={
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()
            },
            expected=json.loads(path.with_suffix(".json").read_text(encoding="utf-8")),
            gradients={name[5:]: tensor for name, tensor in tensors.items() if name.startswith("grad.")},
        )

    @cached_property
    def leaves(self) -> dict[str, Tensor]:
        """The floating inputs as leaves that need a gradient, the others as they are."""
        return {
            name: tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in self.inputs.items()
        }

    def gradients_of(self, name: str, value: Tensor) -> dict[str, Tensor]:
        """Gradients of a scalar along the leaves for which the case expects one: keys `NAME.INPUT`."""
        wanted = [leaf for leaf in self.leaves if f"{name}.{leaf}" in self.gradients]
        if not wanted:
            return {}
        found = torch.autograd.grad(value, [self.leaves[leaf] for leaf in wanted], allow_unused=True)
        return {
            f"{name}.{leaf}": torch.zeros_like(self.leaves[leaf]) if gradient is None else gradient
            for leaf, gradient in zip(wanted, found, strict=True)
        }


@dataclass(kw_only=True)
class Found:
    """What the product computes for a case.

    Attributes:
        values: by the keys of `Case.expected`, with the same structure; tensors, numbers or lists.
        gradients: by the keys of `Case.gradients`.
        parameters: keys of `Case.expected` that were read, not computed.
    """

    values: dict[str, Any] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()

    def add(self, case: Case, key: str, value: Tensor, *, gradient: str | None = None) -> None:
        """Record a scalar under its key and, under the name `gradient`, its gradients."""
        self.values[key] = value.detach()
        if gradient is not None:
            self.gradients |= case.gradients_of(gradient, value)


def worst_relative_error(case: Case, found: Found) -> float:
    """The largest error of all values and gradients; infinite if one that the case expects is not computed."""
    missing = case.expected.keys() - found.values.keys() - found.parameters
    if missing or case.gradients.keys() - found.gradients.keys():
        return math.inf
    values = [_error(found.values[key], case.expected[key]) for key in found.values.keys() & case.expected.keys()]
    gradients = [_error(found.gradients[key], expected) for key, expected in case.gradients.items()]
    return max([*values, *gradients], default=math.inf)


def not_computed(case: Case, found: Found) -> list[str]:
    """The expected values and gradients that `found` lacks."""
    values = case.expected.keys() - found.values.keys() - found.parameters
    gradients = case.gradients.keys() - found.gradients.keys()
    return [*sorted(values), *(f"grad.{key}" for key in sorted(gradients))]


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _error(found: Any, expected: Any) -> float:
    """Largest difference relative to the largest expected number of the same array; infinite for another structure."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or found.keys() != expected.keys():
            return math.inf
        return max((_error(found[key], value) for key, value in expected.items()), default=0.0)
    if isinstance(expected, bool | str) or expected is None:
        return 0.0 if found == expected else math.inf
    if _is_ragged(expected):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return math.inf
        return max((_error(one, value) for one, value in zip(found, expected, strict=True)), default=0.0)
    found_tensor, expected_tensor = (torch.as_tensor(values, dtype=torch.float64) for values in (found, expected))
    if found_tensor.shape != expected_tensor.shape or not bool(found_tensor.isfinite().all()):
        return math.inf
    if not expected_tensor.numel():
        return 0.0
    largest = max(float(expected_tensor.abs().max()), SMALLEST)
    return float((found_tensor - expected_tensor).abs().max()) / largest


def _is_ragged(expected: Any) -> bool:
    """Whether these are lists of different lengths."""
    return isinstance(expected, list) and len({len(one) if isinstance(one, list) else -1 for one in expected}) > 1
