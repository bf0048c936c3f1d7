"""Why a divergence of the logit loss does not fit its settings or a kind of stored logits, one line per reason."""

from collections.abc import Sequence
from typing import Protocol, get_args

from pydantic import BaseModel

from alignkd.student_train.objective.logits.divergence_table import (
    DIVERGENCES,
    SETTINGS,
    DivergenceSettings,
    LogitDivergence,
    StoredLogits,
    takers,
    users,
)


class LogitSettings(DivergenceSettings, Protocol):
    """The settings of `LossConfig` that are checked here."""

    @property
    def logit_divergence(self) -> LogitDivergence:
        """See `LossConfig`."""

    @property
    def temperature(self) -> float:
        """See `LossConfig`."""


def stored_logits(kind: str, tail: str | None) -> StoredLogits | None:
    """The form of a store's logits, from their kind and `LogitsCodec.tail`; None: it keeps no logits."""
    if tail == "unknown":
        return "unknown tail"
    return next((name for name in get_args(StoredLogits) if name == kind), None)


def problem_of_settings(settings: LogitSettings) -> str | None:
    """A key that belongs to other divergences, or a second temperature."""
    name = settings.logit_divergence
    entry = DIVERGENCES[name]
    for key in SETTINGS:
        if key not in entry.settings and (value := getattr(settings, key)) is not None:
            found = "given" if isinstance(value, BaseModel) else value
            does = "mixes nothing" if key == "logit_mixture" else "does not use it"
            return (
                f"{key} is {found}, but logit_divergence {name!r} {does}; leave {key} out or take {_one_of(users(key))}"
            )
    if entry.own_temperature is not None and settings.temperature != 1.0:
        return (
            f"temperature is {settings.temperature}, but logit_divergence {name!r} has its own; set temperature to 1.0 "
            f"and losses.{entry.own_temperature} instead"
        )
    return None


def problems_with_store(settings: LogitSettings, logits_kind: str, where: str, tail: str | None) -> list[str]:
    """Why the logit loss cannot use a kind of stored logits.

    Args:
        where: names the store.
        tail: `LogitsCodec.tail` of the store.
    """
    stored = stored_logits(logits_kind, tail)
    if stored is None:
        return []  # missing targets are reported elsewhere
    name, found, problems = settings.logit_divergence, f"but {where} keeps logits {logits_kind!r}", []
    entry = DIVERGENCES[name]
    if stored not in entry.accuracy:
        problems.append(f"losses.logit_divergence is {name!r}, {found}{_refusal(name, stored)}")
    elif (limit := entry.limit(settings, stored)) is not None:
        problems.append(f"losses.logit_divergence is {name!r}, {found}, {limit}")
    if entry.own_temperature is None and stored not in entry.tempered and settings.temperature != 1.0:
        problems.append(
            f"losses.temperature is {settings.temperature}, {found}, which fit temperature 1.0 only; set it to 1.0 or "
            "dump 'hidden' or 'full' logits"
        )
    return problems


def _refusal(name: LogitDivergence, stored: StoredLogits) -> str:
    """Why a kind of stored logits is refused, and the next step."""
    if name.startswith("support_"):
        return (
            f", which have no support of kept tokens; set it to {name.removeprefix('support_')!r} or dump 'topk' or "
            "'nucleus' logits"
        )
    if stored == "unknown tail":
        names = _one_of(takers(stored))
        return f" with tail 'unknown', which leave only divergences of the kept tokens; set it to {names}"
    if stored == "sampled":
        only = _one_of(takers(stored))
        return f", which estimate {only} only; set it to {only} or dump other logits"
    return ", which do not have all outcomes; dump 'hidden' or 'full' logits"


def _one_of(names: Sequence[LogitDivergence]) -> str:
    return repr(names[0]) if len(names) == 1 else f"one of {', '.join(names)}"
