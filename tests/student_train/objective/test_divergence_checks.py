"""Which settings and stored logits a divergence of the logit loss accepts, and the one line that refuses the others."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from alignkd.student_train.objective.logits.divergence_table import (
    DIVERGENCES,
    SETTINGS,
    WHOLE,
    Accuracy,
    LogitDivergence,
    StoredLogits,
)
from alignkd.student_train.objective.settings import LossConfig

STORED: dict[str, tuple[str, str | None]] = {
    **{kind: (kind, None) for kind in ("full", "hidden", "topk", "nucleus", "sampled")},
    "unknown tail": ("topk", "unknown"),
}
# Settings with which a divergence accepts truncated logits.
TRUNCATED: dict[str, dict[str, Any]] = {
    "bild": {"bild": {"lead": "teacher"}},
    "sinkhorn": {"sinkhorn": {"temperature": 1.0}},
    "taid": {"taid": {"form": "bucketed"}},
}


def settings_for(name: Any, stored: str) -> LossConfig:
    """A divergence with settings that fit a kind of logits, if there are any."""
    return LossConfig(logit_divergence=name, **({} if stored in WHOLE else TRUNCATED.get(name, {})))


def refused(**given: Any) -> str:
    """The message of settings that are refused."""
    with pytest.raises(ValidationError) as caught:
        LossConfig(**given)
    (error,) = caught.value.errors()
    return error["msg"].removeprefix("Value error, ")


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", get_args(LogitDivergence))
def test_the_table_says_what_is_accepted(name: Any, stored: Any) -> None:
    kind, tail = STORED[stored]
    problems = settings_for(name, stored).problems_with(kind, "store s", tail)
    assert (problems == []) == (stored in DIVERGENCES[name].accuracy)
    assert all("\n" not in problem and f"losses.logit_divergence is '{name}'" in problem for problem in problems)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", get_args(LogitDivergence))
def test_the_divergence_has_the_functions_that_the_table_promises(name: Any, stored: Any) -> None:
    divergence = settings_for(name, stored).divergence
    if stored not in DIVERGENCES[name].accuracy or stored == "sampled":
        return
    if stored in ("full", "hidden"):
        assert divergence.full is not None
    else:
        assert divergence.truncated is not None or divergence.whole_student is not None


def test_kinds_and_words_of_the_table() -> None:
    for entry in DIVERGENCES.values():
        assert {*entry.accuracy} <= {*get_args(StoredLogits)} and {*entry.accuracy.values()} <= {*get_args(Accuracy)}
        assert {*entry.settings} <= {*LossConfig.model_fields} and {*entry.tempered} <= {*get_args(StoredLogits)}
    assert {*SETTINGS} == {"logit_mixture", "ofa_gamma", "akl_head", "bild", "sinkhorn", "taid"}


@pytest.mark.parametrize("name", ["tvd", "cosine_probs", "ofa", "akl"])
def test_temperatures(name: Any) -> None:
    losses = LossConfig(logit_divergence=name, temperature=2.0)
    assert losses.problems_with("full", "store s") == losses.problems_with("hidden", "store s") == []
    assert losses.problems_with("nucleus", "store s") == [
        "losses.temperature is 2.0, but store s keeps logits 'nucleus', which fit temperature 1.0 only; set it to 1.0 "
        "or dump 'hidden' or 'full' logits"
    ]


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"logit_divergence": "bild"},
            "nucleus",
            "losses.logit_divergence is 'bild', but store s keeps logits 'nucleus', which do not have the student's "
            "most probable tokens; set losses.bild.lead to 'teacher' or dump 'hidden' or 'full' logits",
        ),
        (
            {"logit_divergence": "sinkhorn"},
            "topk",
            "losses.logit_divergence is 'sinkhorn', but store s keeps logits 'topk', which fit "
            "losses.sinkhorn.temperature 1.0 only, found 2.0; set it to 1.0 or dump 'hidden' or 'full' logits",
        ),
        (
            {"logit_divergence": "akl"},
            "sampled",
            "losses.logit_divergence is 'akl', but store s keeps logits 'sampled', which estimate 'forward_kl' only; "
            "set it to 'forward_kl' or dump other logits",
        ),
    ],
)
def test_messages_about_a_store(given: Any, kind: str, message: str) -> None:
    assert LossConfig(**given).problems_with(kind, "store s") == [message]
    assert LossConfig(**given, logit=0.0).problems_with(kind, "store s") == []
    assert LossConfig(**given).problems_with("none", "store s") == []  # the missing target is reported elsewhere


def test_message_about_an_unknown_tail() -> None:
    assert LossConfig(logit_divergence="tvd").problems_with("topk", "store s", "unknown") == [
        "losses.logit_divergence is 'tvd', but store s keeps logits 'topk' with tail 'unknown', which leave only "
        "divergences of the kept tokens; set it to one of support_reverse_kl, support_forward_kl, support_js, bild"
    ]
    led = LossConfig(logit_divergence="bild", bild={"lead": "teacher"})
    assert led.problems_with("topk", "store s", "unknown") == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"ofa_gamma": 1.5},
            "ofa_gamma is 1.5, but logit_divergence 'reverse_kl' does not use it; leave ofa_gamma out or take 'ofa'",
        ),
        (
            {"logit_divergence": "tvd", "bild": {}},
            "bild is given, but logit_divergence 'tvd' does not use it; leave bild out or take 'bild'",
        ),
        (
            {"logit_divergence": "akl", "logit_mixture": 0.3},
            "logit_mixture is 0.3, but logit_divergence 'akl' mixes nothing; leave logit_mixture out or take one of "
            "js, skewed_reverse_kl, skewed_forward_kl, support_js",
        ),
        (
            {"logit_divergence": "sinkhorn", "temperature": 3.0},
            "temperature is 3.0, but logit_divergence 'sinkhorn' has its own; set temperature to 1.0 and "
            "losses.sinkhorn.temperature instead",
        ),
        ({"logit_divergence": "bild", "bild": {"k": 2}}, "Input should be greater than or equal to 3"),
        ({"logit_divergence": "sinkhorn", "sinkhorn": {"epsilon": 0.0}}, "Input should be greater than 0"),
    ],
)
def test_messages_about_settings(given: Any, message: str) -> None:
    assert refused(**given) == message
