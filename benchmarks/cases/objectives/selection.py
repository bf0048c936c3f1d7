"""Evaluates `selection`: samples kept by difference, DDK's weights over intervals, groups by visual advantage.

Parameters are in the keys: `miniplm.ratio=R`, `ddk.alpha=A.r`, `va_groups.share=S.mean_high_plus_mean_low`. A further
parameter of DDK is `temperature=T`.
"""

import re

import torch

from alignkd.storage.tools.select.keeping import difference_scores, top_share
from alignkd.student_train.data.domains.ddk import first_weights, next_weights, perplexity_ratios
from alignkd.student_train.losses.logits.advantage_groups import group_factors, high_positions
from cases.objectives.case import Case, Found

PARAMETER = re.compile(r"([a-z_]+)=([-+0-9.e]*[0-9])")


def evaluate(case: Case) -> Found:
    """The values of all keys of the case, and their gradients."""
    found = Found()
    for key in case.expected:
        given = {name: float(value) for name, value in PARAMETER.findall(key)}
        if key.startswith("miniplm."):
            found.values[key] = _kept(case, given["ratio"])
        elif key.startswith("ddk."):
            found.values[key] = _weights(case, given["alpha"], given.get("temperature", 1.0))
        elif key.startswith("va_groups."):
            value = _means_of_groups(case, given["share"])
            found.add(case, key, value, gradient=key)
    return found


def _kept(case: Case, ratio: float) -> list[int]:
    reference, teacher = (case.inputs[f"{model}_mean_nll"].numpy() for model in ("reference", "teacher"))
    kept: list[int] = top_share(difference_scores(reference, teacher), ratio).tolist()
    return kept


def _weights(case: Case, alpha: float, temperature: float) -> list[list[float]]:
    teacher, rows = case.inputs["teacher_domain_nll"].numpy(), list[list[float]]()
    for student in case.inputs["student_domain_nll"].numpy():
        ratios = perplexity_ratios(student, teacher, temperature)
        weights = next_weights(rows[-1], ratios, alpha) if rows else first_weights(ratios)
        rows.append(weights.tolist())
    return rows


def _means_of_groups(case: Case, share: float) -> torch.Tensor:
    high_N = torch.from_numpy(high_positions(case.inputs["visual_advantage"].numpy(), share))
    values_N = case.leaves["token_kl"]
    num_high = int(high_N.sum())
    factors_N = group_factors(high_N, num_high, len(high_N) - num_high)
    return (values_N * factors_N.to(values_N.dtype)).sum() / len(values_N)
