"""Which linear layers of the decoder get LoRA, decided from their names alone."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignkd.student_train.errors import TrainError
from alignkd.student_train.trained.settings import ALL_LINEAR
from alignkd.vlm.weights.key_patterns import group_keys

# Experts of a mixture: a rank without a token for one of them would have no gradient where the others have one.
EXPERTS = ".experts."
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class LoraNames:
    """Linear layers by what happens to them.

    Attributes:
        chosen: those that get LoRA, in the order of the model.
        left_out: those of experts, which `all-linear` leaves out.
    """

    chosen: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def lora_names(targets: str | Sequence[str], names: Iterable[str]) -> LoraNames:
    """Choose among the linear layers of a decoder.

    Args:
        targets: `student.lora.targets`.
        names: of all linear layers below the decoder, `layers.0.self_attn.q_proj` for example.

    Raises:
        TrainError: a regular expression that is none, or a target that matches nothing or an expert.
    """
    names = list(names)
    if targets == ALL_LINEAR:
        return LoraNames(
            chosen=tuple(name for name in names if EXPERTS not in name),
            left_out=tuple(name for name in names if EXPERTS in name),
        )
    found = {
        name
        for target in ([targets] if isinstance(targets, str) else targets)
        for name in _matches(target, names, targets)
    }
    if not found:
        raise TrainError(f"student.lora.targets is empty; give {ALL_LINEAR!r} or names, of {_shown(names)}")
    if experts := [name for name in names if name in found and EXPERTS in name]:
        raise TrainError(
            f"student.lora.targets {targets!r} matches {_shown(experts)}: experts that only some tokens reach get no "
            "LoRA; leave them out"
        )
    return LoraNames(chosen=tuple(name for name in names if name in found))


def _matches(target: str, names: Sequence[str], targets: str | Sequence[str]) -> set[str]:
    if isinstance(targets, str):
        try:
            found = {name for name in names if re.fullmatch(target, name)}
        except re.error as error:
            raise TrainError(
                f"student.lora.targets {target!r} is not a regular expression ({error}); write {ALL_LINEAR!r}, a "
                "regular expression or a list of names"
            ) from error
    else:
        found = {name for name in names if name == target or name.endswith(f".{target}")}
    if not found:
        if "lm_head" in target:
            raise TrainError(
                f"student.lora.targets {target!r}: the head gets no LoRA, because the losses are computed from its "
                "matrix; leave it out, or train it with student.trained 'decoder' or 'all'"
            )
        raise TrainError(
            f"student.lora.targets {target!r} matches no linear layer of the decoder; its layers are {_shown(names)}"
        )
    return found


def _shown(names: Sequence[str]) -> str:
    grouped = list(group_keys(names))
    more = f" and {len(grouped) - SHOWN} more" if len(grouped) > SHOWN else ""
    return ", ".join(grouped[:SHOWN]) + more
