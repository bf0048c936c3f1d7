"""Preference losses: DPO, IPO, KTO pair (means with and without gradient), margin MSE.

Keys are `KIND.PARAMETER=VALUE..._sum`; the gradients of the sum have the key without `_sum`.
"""

from alignkd.student_train.losses.preference import BatchMeans, preference_loss
from cases.objectives.case import Case, Found


def evaluate(case: Case) -> Found:
    """Every sum and its gradients along the log-probabilities of both answers."""
    found, given = Found(), case.leaves
    for key in case.expected:
        name = key.removesuffix("_sum")
        kind, settings = _parsed(name)
        chosen_G = given["policy_chosen"] - given["reference_chosen"]
        rejected_G = given["policy_rejected"] - given["reference_rejected"]
        means = BatchMeans.of(chosen_G, rejected_G)
        loss = preference_loss(
            kind,  # type: ignore[arg-type]  # an unknown kind is an error of the case
            chosen_G,
            rejected_G,
            beta=float(settings.get("beta", 0.1)),
            smoothing=float(settings.get("smoothing", 0.0)),
            means=means.detach() if settings.get("kl_detached", "True") == "True" else means,
        )
        found.add(case, key, loss.total, gradient=name)
    return found


def _parsed(name: str) -> tuple[str, dict[str, str]]:
    """`kto_pair.beta=0.1.kl_detached=True` -> the kind and its settings; values may contain a point."""
    kind, *parts = name.split(".")
    settings: dict[str, str] = {}
    last = ""
    for part in parts:
        if "=" in part:
            last, _, settings[last] = part.partition("=")
        else:
            settings[last] += f".{part}"
    return kind, settings
