"""Random numbers of dropout that a resumed run draws again: each forward pass starts from a seed of its own."""

from hashlib import sha256
from typing import Self

import torch
from torch import nn


class DropoutSeeds:
    """Seeds torch's generators before each forward pass of a rank.

    A seed depends on the run's seed, the step, the micro-batch within the step and the rank. So no random state has to
    be kept in checkpoints. Runs on different numbers of ranks draw different numbers.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank, self._step, self._micro_batch = seed, rank, 0, 0

    @classmethod
    def of(cls, module: nn.Module, *, seed: int, rank: int) -> Self | None:
        """None for a module that draws no random numbers."""
        drawing = (isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in module.modules())
        return cls(seed, rank) if any(drawing) else None

    def start_step(self, step: int) -> None:
        """The next forward pass is the first one of this optimiser step."""
        self._step, self._micro_batch = step, 0

    def seed_next(self) -> None:
        """Seed the generators for the next forward pass."""
        text = f"{self._seed} {self._step} {self._micro_batch} {self._rank}"
        torch.manual_seed(int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1)
        self._micro_batch += 1
