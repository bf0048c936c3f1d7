"""Engines of a small network that has all parameter groups of a student, and steps with chosen data."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.engine.engine import Engine, StepOutcome
from alignkd.student_train.engine.optimizers.moments import MOMENTS
from alignkd.student_train.objective.objective import DistilledStudent

VOCABULARY, WIDTH, INNER, ROWS = 100, 48, 200, 6


class Network(nn.Module):
    """An embedding, a projector and layers of different sizes; a buffer that must stay float32."""

    projector_prefixes: tuple[str, ...] = ("projector.",)

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.projector = nn.Linear(WIDTH, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.register_buffer("frequencies", torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, ids_N: Tensor) -> Tensor:
        """Some function of all of it, [N, WIDTH]."""
        rows = self.projector(self.embedding(ids_N)) * self.get_buffer("frequencies").to(self.embedding.weight.dtype)
        return rows + self.frozen(self.second(torch.tanh(self.first(rows))))


class SmallStudent(nn.Module):
    """What an engine needs of a `DistilledStudent`; `forward` gives a loss per row."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.adapters = Network(), nn.ModuleDict({"adapter": nn.Linear(WIDTH, WIDTH)})

    def start_step(self, step: int, *, seed: int) -> None:
        """Nothing depends on the step."""

    def forward(self, ids_N: Tensor) -> Tensor:
        """Losses, float32 [N]."""
        losses: Tensor = self.adapters["adapter"](self.model(ids_N)).float().square().mean(1)
        return losses


def small_engine(*, dtype: torch.dtype = torch.float32, **settings: Any) -> Engine:
    """An engine of a fresh small student, the one that `build_engine` chooses."""
    torch.manual_seed(0)
    config = TrainConfig(
        **{
            "output": Path(), "steps": 9, "micro_batch": 1, "learning_rate": 1e-2, "projector_learning_rate": 3e-3,
            "adapter_learning_rate": 1e-3, "weight_decay": 0.01, **settings,
        }
    )  # fmt: skip
    return build_engine(cast(DistilledStudent, SmallStudent()), config, dtype=dtype, ranks=start_ranks())


def do_step(engine: Engine, step: int, *, micro_batches: int = 1, factor: float = 1.0) -> StepOutcome:
    """One optimiser step on rows that depend on its number alone; its loss is multiplied by `factor`."""
    generator = torch.Generator().manual_seed(step)
    engine.start_step(step, micro_batches=micro_batches)
    ranks, outcome = engine.ranks, None
    for _ in range(micro_batches):
        ids_N = torch.randint(VOCABULARY, (ROWS * ranks.world_size,), generator=generator)
        losses = cast(Tensor, engine(cast(TrainBatch, ids_N[ranks.rank :: ranks.world_size])))
        engine.backward(losses.sum() * factor / (micro_batches * len(ids_N)))
        outcome = engine.end_micro_batch(0.5)
    assert outcome is not None
    return outcome


def state_of(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """Master weights and moments, by kind and name."""
    return {"weights": dict(engine.master_weights()), **{kind: dict(engine.moments(kind)) for kind in MOMENTS}}


def load_state(engine: Engine, state: dict[str, dict[str, Tensor]], counters: dict[str, float]) -> None:
    """What a checkpoint would load."""
    engine.load_weights(state["weights"].__getitem__)
    for kind in MOMENTS:
        engine.load_moments(kind, state[kind].__getitem__)
    engine.load_counters(counters)


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference of a tensor's norm."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).norm() / value.norm().clamp(min=1e-20)) for name, value in expected.items())
