"""Which part of each parameter is in this rank's flat partitions, as DeepSpeed 0.19.8 links them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A part of a parameter that this rank updates.

    Attributes:
        flat: the partition of float32 master weights that contains it.
        start: of the fragment in `flat`.
        begin: of the fragment in the parameter.
        count: number of values.
    """

    flat: Tensor
    start: int
    begin: int
    count: int

    def of(self, values: Tensor) -> Tensor:
        """The fragment of a tensor with the parameter's shape, flat."""
        return values.reshape(-1)[self.begin : self.begin + self.count]


def fragment_of(parameter: nn.Parameter, partitions: list[Tensor]) -> Fragment | None:
    """The fragment of a parameter; None if it is in the partitions of other ranks alone.

    Args:
        partitions: those of all parameter groups.
    """
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    of_flat, of_parameter = mapping.hp_fragment_address, mapping.lp_fragment_address
    flat = partitions[mapping.param_group_index]
    return Fragment(flat=flat, start=of_flat.start, begin=of_parameter.start, count=of_flat.numel)


def by_partition(
    parameters: Iterable[tuple[str, nn.Parameter]], partitions: list[Tensor]
) -> list[tuple[Tensor, list[tuple[str, Fragment]]]]:
    """The fragments in each partition, with their parameters' names, in the order of the partition."""
    found: list[list[tuple[str, Fragment]]] = [[] for _ in partitions]
    for name, parameter in parameters:
        if (fragment := fragment_of(parameter, partitions)) is not None:
            number = next(i for i, flat in enumerate(partitions) if flat is fragment.flat)
            found[number].append((name, fragment))
    return [
        (flat, sorted(fragments, key=lambda entry: entry[1].start))
        for flat, fragments in zip(partitions, found, strict=True)
    ]
