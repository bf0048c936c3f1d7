"""Settings: presets, relations, learning rate, parameter groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.division import MicroBatchLimit
from alignkd.student_train.engine.parameter_groups import parameter_groups
from alignkd.student_train.engine.schedule import learning_rate_factor
from alignkd.student_train.engine.zero.config import zero_config
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.terms import TERMS, preset_weights
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"output": "out", "steps": 10} | values)


def test_defaults_are_the_papers_weights() -> None:
    weights = {"supervised": 1.0, "attention": 1.0, "vision_all": 1.0, "vision_top": 0.1, "logit": 1.0}
    assert config().losses.weights == weights == config(preset="paper").losses.weights
    assert config().losses.logit_divergence == "reverse_kl"


def test_presets_yield_to_explicit_keys() -> None:
    assert config(preset="supervised").losses.weights == {"supervised": 1.0}
    mixed = config(preset="supervised", losses={"logit": 0.5, "logit_divergence": "forward_kl"}).losses
    assert mixed.weights == {"supervised": 1.0, "logit": 0.5}
    assert mixed.logit_divergence == "forward_kl"
    assert config(preset="supervised", losses=LossConfig(attention=2.0)).losses.weights == {
        "supervised": 1.0,
        "attention": 2.0,
    }


def test_presets_weigh_every_term() -> None:
    for preset in ("paper", "supervised"):
        assert preset_weights(preset).keys() == TERMS.keys() == config(preset=preset).losses.model_fields_set


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": 0}, "steps"),
        ({"epochs": 1}, "give steps or epochs, found steps 10 and epochs 1"),
        ({"steps": None}, "give steps or epochs, found neither"),
        ({"steps": None, "epochs": 0}, "epochs"),
        ({"preset": "best"}, "preset"),
        ({"losses": {"attn": 1.0}}, "attn"),
        ({"losses": {"attention": -1.0}}, "attention"),
        ({"losses": {"supervised": 0, "logit": 0}}, "nothing trains the decoder"),
        ({"losses": {"relation": 1, "relations_of": "layer_3"}}, "relations_layer is not given"),
        ({"losses": {"relation": 1, "relations_layer": 3}}, "relations_of 'last_hidden' is not a layer"),
        ({"losses": {"relations_of": "projector"}}, "relation is 0, so it is not used"),
        ({"losses": {"visual_logit_temperature": 2.0}}, "visual_logit is 0, so it is not used"),
        ({"losses": {"relation": 1, "relations_of": "middle"}}, "found 'middle', expected last_hidden, projector"),
        ({"losses": {"nd": 1.0}}, "write the teacher's class means by `alignkd shards centres STORE --out FILE`"),
        ({"centres": "file"}, "losses.nd is 0, so it is not used"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        (
            {"micro_batch": 4, "token_budget": 4096, "global_batch": 8},
            "give micro_batch or token_budget, found micro_batch 4 and token_budget 4096; set one of them to null",
        ),
        ({"micro_batch": None}, "give micro_batch or token_budget, found neither; set one of them"),
        ({"token_budget": 4096}, "token_budget is 4096, but global_batch is not given"),
        ({"token_budget": 0, "global_batch": 8}, "token_budget"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        config(**values)


def test_global_batch_and_accumulation() -> None:
    assert config(micro_batch=4).global_batch_size(2) == 8
    assert config(micro_batch=4, global_batch=32).accumulation_steps(2) == 4
    with pytest.raises(ValueError, match="global_batch 12 is not a multiple of micro_batch 4 x 2 devices = 8"):
        config(micro_batch=4, global_batch=12).global_batch_size(2)


def test_a_token_budget_replaces_the_micro_batch() -> None:
    budget = config(token_budget=4096, global_batch=12)
    assert (budget.micro_batch, budget.micro_batch_limit) == (None, MicroBatchLimit(positions=4096))
    assert config().micro_batch_limit == MicroBatchLimit(samples=8)
    assert TrainConfig.model_validate(budget.model_dump(mode="json")) == budget
    assert (budget.global_batch_size(4), budget.accumulation_steps(4)) == (12, 3)
    assert budget.accumulates(4) and not budget.accumulates(12)
    with pytest.raises(ValueError, match="global_batch 12 is not a multiple of 5 devices; change one of them"):
        budget.global_batch_size(5)


@pytest.mark.parametrize(
    ("epochs", "num_samples", "steps"), [(1, 1024, 4), (1, 1025, 5), (0.1, 30, 1), (0.5, 1024, 2), (3, 1000, 12)]
)
def test_epochs_are_whole_global_batches(epochs: float, num_samples: int, steps: int) -> None:
    settings = config(steps=None, epochs=epochs, micro_batch=16, global_batch=256)
    assert settings.optimiser_steps(num_samples, 2) == steps
    resolved = settings.in_steps(num_samples, 2)
    assert (resolved.num_steps, resolved.epochs) == (steps, None)
    assert resolved == config(steps=steps, micro_batch=16, global_batch=256)


def test_learning_rate_warms_up_then_follows_a_cosine_to_nothing() -> None:
    factors = [learning_rate_factor(step, steps=110, warmup_ratio=10 / 110) for step in range(111)]
    assert factors[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert factors[60] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[110] == pytest.approx(0.0)
    assert learning_rate_factor(0, steps=5, warmup_ratio=0.0) == 1.0
    assert learning_rate_factor(4, steps=5, warmup_ratio=1.0) == 1.0


@pytest.fixture
def student(new_student: Callable[[], MobileVLM]) -> DistilledStudent:
    return DistilledStudent(new_student(), Adapters(heads=(8, 4), hidden_sizes=(128, 64)), LossConfig())


def test_parameter_groups_cover_every_trained_parameter_once(student: DistilledStudent) -> None:
    settings = config(learning_rate=1e-4, projector_learning_rate=1e-3, adapter_learning_rate=1e-2)
    groups = parameter_groups(student, settings)
    names = {id(value): name for name, value in student.named_parameters()}
    by_rate = {group["lr"]: sorted(names[id(value)] for value in group["params"]) for group in groups}
    trained = sorted(name for name, value in student.named_parameters() if value.requires_grad)
    assert sorted(name for group in by_rate.values() for name in group) == trained
    assert all("mm_projector" in name for name in by_rate[1e-3])
    assert by_rate[1e-2] == sorted(f"adapters.{name}" for name, _ in student.adapters.named_parameters())
    assert {group["lr"] for group in parameter_groups(student, config(learning_rate=1e-4))} == {1e-4}


def test_zero_settings(student: DistilledStudent) -> None:
    made = config(micro_batch=2, global_batch=16, gradient_clip=0.5)
    settings = zero_config(student, made, torch.bfloat16, 2, pin_memory=False)
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"]["enabled"]
    # A bucket is allocated whole: never larger than the model.
    assert settings["zero_optimization"]["reduce_bucket_size"] < 10**6


@pytest.mark.parametrize(
    ("dtype", "offload", "global_batch", "float32"),
    [
        (torch.bfloat16, True, 4, True),
        (torch.bfloat16, False, 2, True),  # takes less of the device than the way through 16 bits
        (torch.bfloat16, True, 2, False),  # nothing to add up
        (torch.float32, True, 4, False),
    ],
)
def test_sums_of_gradients_are_float32_where_there_is_a_sum(
    student: DistilledStudent, dtype: torch.dtype, offload: bool, global_batch: int, float32: bool
) -> None:
    made = config(micro_batch=2, global_batch=global_batch, optimizer="adamw_offload" if offload else "adamw")
    settings = zero_config(student, made, dtype, 1, pin_memory=True)
    assert (settings.get("data_types") == {"grad_accum_dtype": "fp32"}) is float32
    assert settings["zero_optimization"].get("offload_optimizer", {}).get("pin_memory", False) is offload
    asked_not_to = made.model_copy(update={"float32_gradients": False})
    assert "data_types" not in zero_config(student, asked_not_to, dtype, 1, pin_memory=False)


def test_output_is_a_path() -> None:
    assert config().output == Path("out")


def test_mixture_belongs_to_a_divergence_that_mixes() -> None:
    assert config(losses={"logit_divergence": "js", "logit_mixture": 0.3}).losses.logit_mixture == 0.3
    with pytest.raises(
        ValidationError, match=r"logit_mixture is 0\.3, but logit_divergence 'reverse_kl' mixes nothing"
    ):
        config(losses={"logit_mixture": 0.3})
    for outside in (0.0, 1.0):
        with pytest.raises(ValidationError, match="logit_mixture"):
            config(losses={"logit_divergence": "js", "logit_mixture": outside})


@pytest.mark.parametrize("divergence", ["reverse_kl", "js", "skewed_reverse_kl", "skewed_forward_kl"])
def test_draws_give_the_forward_divergence_only(divergence: Any) -> None:
    (problem,) = LossConfig(logit_divergence=divergence).problems_with("sampled", "store s")
    assert f"losses.logit_divergence is '{divergence}'" in problem and "\n" not in problem
    assert LossConfig(logit_divergence="forward_kl").problems_with("sampled", "store s") == []


@pytest.mark.parametrize("kind", ["topk", "nucleus"])
def test_a_truncated_teacher_has_no_temperature(kind: str) -> None:
    (problem,) = LossConfig(logit_divergence="js", temperature=2.0).problems_with(kind, "store s")
    assert "losses.temperature is 2.0" in problem and "\n" not in problem
