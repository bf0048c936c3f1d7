"""`train.extend`: a run that goes on from the last state of an earlier run, into an output of its own.

The first start reads the earlier run. From then on, the checkpoints of the new run hold what the extension needs: the
steps that the earlier run had done, its last learning rate, the steps of the first run of the chain where a weight or
TAID's t follows them, and a hash of its state. So a resumed run does not need the earlier run any more.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from alignkd.storage import StoreError
from alignkd.storage.schema.sealed_json import unseal
from alignkd.student_train.checkpoints.checkpoint import (
    STATE,
    Checkpoint,
    all_checkpoints,
    differing_settings,
    grown_stores,
    sound_checkpoint,
    step_of,
)
from alignkd.student_train.config import ExtendConfig, TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.schedule import Schedule
from alignkd.student_train.errors import TrainError, unreadable
from alignkd.student_train.output import checkpoints_folder, read_finished
from alignkd.student_train.run.output.lock import described_holder, no_training_starts

PREFIX = "extend."
# steps of the first run of a chain, which `losses.attention_decay` and the floor of TAID's t follow; only of runs with
# one of them
FIRST_RUN_STEPS = PREFIX + "decay_steps"
# what an extension may change: its length, and how the learning rate goes on
FREE = {"steps", "warmup_ratio", "learning_rate", "projector_learning_rate", "adapter_learning_rate"}
# of the validation, only what decides which samples are trained on: the best state is chosen among the added steps
VALIDATION, HELD_OUT = "validation.", "validation.share"
# a share of the peak at which a run learns next to nothing
SMALL_FACTOR = 0.01


@dataclass(frozen=True, kw_only=True)
class Extension:
    """Where an extension begins.

    Attributes:
        settings: what decides the extension, as it is kept in checkpoints; its names start with PREFIX.
        checkpoint: the last one of the earlier run; None if the new run has a state of its own.
    """

    settings: dict[str, Any]
    checkpoint: Checkpoint | None

    @property
    def first_step(self) -> int:
        """Optimiser steps that the earlier run has done."""
        return int(self.settings[PREFIX + "step"])


def find_extension(config: TrainConfig, ranks: Ranks) -> Extension | None:
    """The beginning of the extension that `config` asks for, None if it asks for none; called by ALL ranks.

    Args:
        config: its length in steps.

    Raises:
        TrainError: the earlier run cannot be extended in this way, or `output` holds another run.
    """
    extend = config.extend
    return None if extend is None else ranks.on_first(lambda: _find(config, extend))


def schedule_of(settings: Mapping[str, Any]) -> Schedule:
    """The schedule of a run with these deciding settings."""
    steps, warmup_ratio, peak = (settings[name] for name in ("steps", "warmup_ratio", "learning_rate"))
    kind = settings.get(PREFIX + "schedule")
    if kind is None:
        return Schedule(steps=steps, warmup_ratio=warmup_ratio)
    rate = settings[PREFIX + "learning_rate"]
    if rate is None:
        rate = peak if kind == "restart" else settings[PREFIX + "last_rate"]
    first_step = settings[PREFIX + "step"]
    return Schedule(steps=steps, warmup_ratio=warmup_ratio, first_step=first_step, kind=kind, factor=rate / peak)


def first_run_steps(settings: Mapping[str, Any]) -> int:
    """The steps over which `losses.attention_decay` and the floor of TAID's t go in a run with these deciding settings.

    In an extension they are those of the first run, so that the weight does not rise again and t does not fall.
    """
    return int(settings.get(FIRST_RUN_STEPS, settings["steps"]))


def steps_done(run: Path) -> int:
    """Optimiser steps of a run up to its end or its newest checkpoint, which is not verified; 0 without both.

    Raises:
        TrainError: the mark of a finished run is damaged.
    """
    if (finished := read_finished(run)) is not None:
        return int(finished["step"])
    paths = all_checkpoints(checkpoints_folder(run))
    return step_of(paths[-1]) if paths else 0


def check_can_be_extended(extension: Extension, config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Refuse an extension whose settings differ from those of the earlier run, or that adds no step.

    Args:
        settings: what decides the new run.

    Raises:
        TrainError: the message names each setting with both values.
    """
    assert config.extend is not None
    run, done = config.extend.run, extension.first_step
    if config.num_steps <= done:
        raise TrainError(
            f"train.extend.run {run} has done {done} steps, and the length of this run is {config.num_steps} steps, "
            "counted from the beginning of that run; raise steps or epochs"
        )
    if extension.checkpoint is None:  # its own checkpoints are compared when one is resumed
        return
    before = extension.checkpoint.settings
    differing = differing_settings(_comparable(before), _comparable(settings))
    if differing and (grown := grown_stores(before, settings)) and len(differing) == len(grown.settings):
        raise TrainError(
            f"train.extend.run {run} was trained when {grown.text}; an extension goes on through the same samples: "
            "start a new run instead, from its student (student.checkpoint) and adapters (train.adapters)"
        )
    if differing:
        raise TrainError(
            f"train.extend.run {run} was trained with other settings: {'; '.join(differing)}; restore them: an "
            "extension may change length, warmup_ratio, learning rates and validation (but share) only"
        )


def extension_line(config: TrainConfig, extension: Extension, schedule: Schedule) -> str:
    """What is extended, for the log."""
    assert config.extend is not None
    first, last = schedule(extension.first_step), schedule(config.num_steps - 1)
    return (
        f"extends {config.extend.run} from step {extension.first_step} to {config.num_steps}: schedule "
        f"{schedule.kind}, learning rate {config.learning_rate * first:.3g} at the first step, "
        f"{config.learning_rate * last:.3g} at the last one"
    )


def small_rate_warning(config: TrainConfig, schedule: Schedule) -> str | None:
    """A warning if the added steps change next to nothing: the earlier run's cosine had ended."""
    if schedule.factor >= SMALL_FACTOR:
        return None
    return (
        f"the learning rate of the added steps is at most {config.learning_rate * schedule.factor:.3g}, "
        f"{schedule.factor:.2%} of train.learning_rate, because the cosine of the earlier run has ended; set "
        "train.extend.learning_rate, or choose schedule restart"
    )


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    free = {name for name in settings if name.startswith((PREFIX, VALIDATION))} - {HELD_OUT} | FREE
    comparable = {name: value for name, value in settings.items() if name not in free}
    # a rate may change, but not which parameters the checkpoint holds
    return comparable | {"adapters trained": settings.get("adapter_learning_rate") != 0}


def _find(config: TrainConfig, extend: ExtendConfig) -> Extension:
    asked = {PREFIX + "schedule": extend.schedule, PREFIX + "learning_rate": extend.learning_rate}
    own = _own_settings(config.output)
    if own is None:
        return _beginning(extend, asked)
    kept = ("step", "last_rate", "state", "decay_steps")
    begun = {name: own[PREFIX + name] for name in kept if PREFIX + name in own}
    if not begun:
        raise TrainError(
            f"output {config.output} holds a run that extends no other, but train.extend.run is {extend.run}; choose "
            "a new output"
        )
    _check_same_run(config.output, extend.run, begun)
    return Extension(settings={**asked, **{PREFIX + name: value for name, value in begun.items()}}, checkpoint=None)


def _own_settings(output: Path) -> dict[str, Any] | None:
    """What decides the run in `output`; None if it has no state yet."""
    finished = read_finished(output)
    if finished is not None:
        return dict(finished["settings"])
    for path in reversed(all_checkpoints(checkpoints_folder(output))):
        try:
            return dict(unseal(path / STATE)["settings"])
        except StoreError:
            continue  # `find_checkpoint` reports it
    return None


def _check_same_run(output: Path, run: Path, begun: Mapping[str, Any]) -> None:
    """Refuse another earlier run than the one of the first start, if its state is still there to be compared."""
    state = checkpoints_folder(run) / f"step-{begun['step']:08d}" / STATE
    try:
        differs = state.is_file() and _identity(state) != begun["state"]
    except StoreError:
        return  # it cannot be compared, and is not needed any more
    if differs:
        raise TrainError(
            f"output {output} was started as an extension of another run than train.extend.run {run}; restore its "
            "path, or choose another output"
        )


def _beginning(extend: ExtendConfig, asked: dict[str, Any]) -> Extension:
    """The last state of the earlier run, which is only read."""
    run = extend.run
    with no_training_starts(run) as lock:
        if lock == "held":
            raise TrainError(
                f"train.extend.run {run} is in use: {described_holder(run)}; wait for its end, or stop it first"
            )
        checkpoint = _last_checkpoint(run)
        state = _identity(checkpoint.path / STATE)
    settings, step = checkpoint.settings, checkpoint.state.step
    last_rate = settings["learning_rate"] * schedule_of(settings)(step - 1)
    begun = {PREFIX + "step": step, PREFIX + "last_rate": last_rate, PREFIX + "state": state}
    if settings.get("losses.attention_decay") is not None or settings.get("losses.taid") is not None:
        begun[FIRST_RUN_STEPS] = first_run_steps(settings)
    return Extension(settings=asked | begun, checkpoint=checkpoint)


def _last_checkpoint(run: Path) -> Checkpoint:
    """The checkpoint of the last state, verified.

    Raises:
        TrainError: there is none, it is damaged, or it is older than the end of the run.
    """
    paths = all_checkpoints(checkpoints_folder(run))
    if not paths:
        found = "has no checkpoint to go on from" if run.is_dir() else "is not a folder"
        raise TrainError(
            f"train.extend.run {run} {found}; give the output folder of a training run with its folder checkpoints"
        )
    try:
        checkpoint = sound_checkpoint(paths[-1])
    except OSError as error:
        raise unreadable(f"train.extend.run {run}: checkpoint {paths[-1].name}", error) from error
    except (StoreError, TrainError) as error:
        raise TrainError(
            f"train.extend.run {run}: its last checkpoint {paths[-1].name} is damaged ({error}); restore it, or remove "
            "it if an older state may be extended"
        ) from error
    finished = read_finished(run)
    if finished is not None and finished["step"] != checkpoint.state.step:
        raise TrainError(
            f"train.extend.run {run} has done {finished['step']} steps, but its last checkpoint is {paths[-1].name}; "
            f"restore the checkpoint of step {finished['step']}"
        )
    return checkpoint


def _identity(path: Path) -> str:
    """A hash of a checkpoint's STATE without its validation, which the earlier run may still do when it goes on.

    Raises:
        StoreError: it is damaged or cannot be read.
    """
    lasting = {name: value for name, value in unseal(path).items() if name != "validation"}
    return sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]
