"""What `alignkd plan` knows of micro-batches: the largest one, and how much of them is padding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from alignkd.pipeline.cli import main
from alignkd.pipeline.plan.memory.micro_batch import LargestMicroBatch, may_accumulate
from alignkd.pipeline.plan.time.padding import STEPS, training_padding
from alignkd.storage import SampleOrder
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.division import Division

CONFIGS = Path(__file__).parents[3] / "pipeline" / "configs"
NO_DATA = ("--samples", "100000", "--mean-tokens", "240")
GIB = 1 << 30


def train_of(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"output": "out", "steps": 3, "global_batch": 24} | settings)


SIZES = st.builds(dict, micro_batch=st.sampled_from([1, 2, 3, 4])) | st.builds(dict, token_budget=st.integers(1, 3000))


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 90)), min_size=1, max_size=30), SIZES, st.integers(1, 2))
def test_no_micro_batch_is_larger_than_the_largest(
    samples: list[tuple[int, int]], size: dict[str, int], devices: int
) -> None:
    train = train_of(**size)
    lengths, values = (np.array(column) for column in zip(*samples, strict=True))
    largest = LargestMicroBatch.of(train, lengths, devices)
    order = SampleOrder(len(lengths), 0, 24)
    for step in range(3):
        chosen = order.global_batch_indices(step)
        division = Division(chosen, lengths[chosen], train.micro_batch_limit, devices)
        assert len(division) == 1 or may_accumulate(train, devices)
        for batch in (batch for rank in range(devices) for batch in division.of_rank(rank)):
            assert len(batch) * lengths[batch].max() <= largest.samples * largest.length
            assert len(batch) * values[batch].max() <= largest.samples * largest.most(values)
    if train.micro_batch is not None:
        assert (largest.samples, largest.length) == (train.micro_batch, lengths.max())
        assert largest.most(values) == values.max()


def test_equal_samples_fill_a_budget_like_a_micro_batch() -> None:
    lengths = np.array([512] * 9)
    by_samples, by_tokens = (
        LargestMicroBatch.of(train_of(**size), lengths, 1) for size in ({"micro_batch": 8}, {"token_budget": 8 * 512})
    )
    assert (by_samples.samples, by_samples.length) == (by_tokens.samples, by_tokens.length) == (8, 512)
    short = LargestMicroBatch.of(train_of(token_budget=8 * 512), np.array([512, 128]), 1)
    assert (short.samples, short.length) == (8, 512)
    assert short.most(np.array([0, 100])) == 32 * 100 // 8
    whole = LargestMicroBatch.of(train_of(token_budget=100 * 512), lengths, 2)
    assert (whole.samples, whole.length) == (12, 512)  # of one device


def test_padding_is_that_of_the_steps() -> None:
    lengths = np.random.default_rng(0).integers(100, 512, 1000)
    order = SampleOrder(1000, 0, 24)
    padded = real = 0
    for step in range(STEPS):
        chosen = np.sort(lengths[order.global_batch_indices(step)])
        padded += int(4 * chosen[3::4].sum())
        real += int(chosen.sum())
    found = training_padding(train_of(micro_batch=4, steps=None, epochs=1), lengths)
    assert found == padded / real
    assert training_padding(train_of(micro_batch=4, steps=2 * STEPS), lengths, order) == found
    assert training_padding(train_of(micro_batch=1), lengths) == 1.0
    assert 1.0 < training_padding(train_of(token_budget=2048), lengths) < found


def plan(config: Path, *options: str) -> Any:
    found = CliRunner().invoke(main, ["plan", str(config), *options])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout) if "--json" in options else found.stdout


def test_padding_is_in_the_hours(write_config: Callable[..., Path]) -> None:
    """Of both phases where the lengths are known; a micro-batch of one sample has none."""
    alone, four = (
        plan(write_config(train={"micro_batch": size, "global_batch": 4}, teacher={"batch": size}), "--json")
        for size in (1, 4)
    )
    assert alone["padding"] == {"dump": 1.0, "train": 1.0}
    assert four["padding"]["train"] > 1.1 and four["padding"]["dump"] > 1.0
    for phase in ("dump", "train"):
        assert alone["hours"]["l4"][phase] < four["hours"]["l4"][phase]
    config = write_config(train={"micro_batch": None, "token_budget": 600, "global_batch": 4})
    assert 1.0 <= plan(config, "--json")["padding"]["train"] < four["padding"]["train"]
    assert "padded / real positions: dump 1." in plan(config)
    assert plan(config, "--json", *NO_DATA)["padding"] is None
    assert "without padding: the lengths of the samples are not known" in plan(config, *NO_DATA)


@pytest.fixture
def budget_recipe(tmp_path: Path) -> Callable[[int], Path]:
    """budget_recipe(tokens): the recipe `short` with a token budget."""

    def write(tokens: int) -> Path:
        sections = yaml.safe_load((CONFIGS / "short.yaml").read_text())
        sections["train"] |= {"micro_batch": None, "token_budget": tokens}
        path = tmp_path / f"{tokens}.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return write


def test_a_budget_of_the_longest_samples_takes_the_memory_of_a_micro_batch(
    budget_recipe: Callable[[int], Path],
) -> None:
    """All assumed samples are of one length, so both are the same micro-batches."""
    options = ("--json", "--samples", "100000", "--mean-tokens", "512", "--stage", "finetune", "--gpu-memory", "80GiB")
    by_samples, by_tokens = plan(CONFIGS / "short.yaml", *options), plan(budget_recipe(8 * 512), *options)
    for name in ("student_memory_bytes", "student_memory_by_part", "student_host_bytes", "student_memory_table"):
        assert by_tokens[name] == by_samples[name], name


def test_advice_lowers_the_budget_and_fits(budget_recipe: Callable[[int], Path]) -> None:
    options = ("--json", *NO_DATA, "--stage", "finetune", "--gpu-memory", "24GiB", "--host-memory", "32GB",
               "--disk", "2TB")  # fmt: skip
    (step,) = plan(budget_recipe(65536), *options)["recommendation"]
    chosen = step["set"].pop("train.token_budget")
    assert "train.micro_batch" not in step["set"] and 0 < chosen < 65536
    followed = budget_recipe(chosen)
    values = yaml.safe_load(followed.read_text())
    for key, value in step["set"].items():
        section, name = key.split(".")
        values[section][name] = value
    followed.write_text(yaml.safe_dump(values))
    found = plan(followed, *options)
    assert found["fits"] and found["student_memory_bytes"] <= step["bytes"]
