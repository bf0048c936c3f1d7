"""What to change so that a plan fits: the cheapest changes first, each with its effect."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.console.printing import format_bytes
from alignkd.pipeline.plan.memory.from_config import teacher_load
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.pipeline.plan.memory.teacher import teacher_memory
from alignkd.pipeline.plan.memory.teacher_host import teacher_host_bytes
from alignkd.pipeline.plan.result import Plan
from alignkd.storage.codecs.settings import STEM
from alignkd.student_train.config import OptimizerName

# Optimiser and gradient checkpointing, those that take the least time first: moments in 8 bits cost next to none,
# checkpointing a forward pass, offloading the optimiser step on the host.
ORDER: tuple[tuple[OptimizerName, bool], ...] = (
    ("adamw", False),
    ("adamw_8bit", False),
    ("adamw", True),
    ("adamw_8bit", True),
    ("adamw_offload", False),
    ("adamw_offload", True),
)
OFFLOADING = 4
# Tokens of a forward pass that are assumed to keep a device busy.
BUSY_TOKENS = 1024


def advice(
    plan: Plan, config: RunConfig, teacher: ModelShapes, student: ModelShapes | None, load: StudentLoad | None
) -> tuple[dict[str, Any], ...]:
    """Steps for each part of the plan that does not fit: what to set, and the bytes that it then takes."""
    fits = plan.fits_by
    steps: list[dict[str, Any]] = []
    if not fits["store"]:
        steps.append(_store(plan))
    if not fits["teacher"]:
        steps.append(_teacher(plan, config, teacher))
    if not fits.get("teacher_host", True):
        steps.append(_window(plan, config, teacher))
    if student is not None and load is not None and not (fits["student"] and fits["student_host"]):
        steps.append(_student(plan, student, load))
    if plan.evaluation is not None and not fits["eval"]:
        steps.append(plan.evaluation.advice(plan.gpu_memory))
    return tuple(steps)


def _store(plan: Plan) -> dict[str, Any]:
    """The stem if the student can use it, otherwise the largest profile that fits on the disk."""
    assert plan.disk is not None
    names = sorted(plan.profiles, key=lambda name: -plan.profiles[name])
    if plan.stem.usable is not False:
        names = [STEM, *names] if plan.stem.usable else [*(name for name in names if name != STEM), STEM]
    for name in names:
        if (size := plan.profiles[name]) <= plan.disk and (name != STEM or plan.stem.usable is not False):
            return {"for": "store", "set": {"store.profile": name}, "bytes": size}
    choices = {
        target: {name: size for name, size in sizes.items() if name != STEM or plan.stem.usable is not False}
        for target, sizes in plan.choices.items()
    }
    kinds = {target: min(sizes, key=lambda name: sizes[name]) for target, sizes in choices.items() if sizes}
    least = plan.store.total - sum(
        plan.store.by_target[target] - plan.choices[target][name] for target, name in kinds.items()
    )
    if least <= plan.disk:
        settings = {f"store.{target}": name for target, name in kinds.items() if target != "logits"}
        return {"for": "store", "set": {**settings, "store.logits.kind": kinds["logits"]}, "bytes": least}
    room = int(plan.data.num_samples * plan.disk / least)
    return {"for": "store", "set": {}, "bytes": least, "say": f"no choice of codecs fits; the disk has room for "
            f"{room:,} samples: use part of the data, or a larger disk"}  # fmt: skip


def _teacher(plan: Plan, config: RunConfig, teacher: ModelShapes) -> dict[str, Any]:
    """The largest token budget that fits, with the least quantisation that it needs."""
    assert config.teacher is not None
    longest = plan.data.longest(config.max_tokens)
    for quantization in dict.fromkeys([config.teacher.quantization, "int8", "nf4"]):
        budget = config.teacher.token_budget
        while True:
            changed = config.teacher.model_copy(update={"token_budget": budget, "quantization": quantization})
            other = config.model_copy(update={"teacher": changed})
            memory = teacher_memory(teacher, teacher_load(other, plan.data, plan.store, teacher))
            if memory.fits(plan.gpu_memory):
                chosen: dict[str, Any] = {"teacher.token_budget": budget}
                if quantization != config.teacher.quantization:
                    chosen["teacher.quantization"] = quantization
                return {"for": "teacher", "set": chosen, "bytes": memory.peak}
            if budget <= longest:
                break
            budget = max(longest, budget // 2)
    return _no_change(
        "teacher",
        "the teacher does not fit, even in 4 bits with one sample at a time; use a device with more memory or a "
        "smaller teacher",
    )


def _window(plan: Plan, config: RunConfig, teacher: ModelShapes) -> dict[str, Any]:
    """The largest window whose image arrays fit the host."""
    assert config.teacher is not None
    window, host = config.teacher.window, plan.teacher.host
    while window > 1:
        window //= 2
        changed = config.teacher.model_copy(update={"window": window})
        other = config.model_copy(update={"teacher": changed})
        host = sum(teacher_host_bytes(other, plan.data, plan.store, teacher).values())
        if replace(plan.teacher, host=host).fits_host(plan.host_memory):
            return {"for": "teacher_host", "set": {"teacher.window": window}, "bytes": host}
    return _no_change(
        "teacher_host",
        f"the dump takes at least {format_bytes(host)} of host memory, and the system 1 GiB; use a machine with more "
        "memory, or scale large images down",
    )


def _student(plan: Plan, student: ModelShapes, load: StudentLoad) -> dict[str, Any]:
    """The first of `student_choices` that fits; if only the host's memory is too small, with fewer data workers."""
    on_host = []
    for workers in dict.fromkeys([load.data_workers, load.data_workers // 2, 0]):
        for changed in student_choices(replace(load, data_workers=workers)):
            memory = student_memory(student, changed)
            if not memory.fits(plan.gpu_memory):
                continue
            if memory.fits_host(plan.host_memory):
                return {"for": "student", "set": _changes(load, changed), "bytes": memory.peak,
                        "host_bytes": memory.host}  # fmt: skip
            on_host.append(memory.host)
    if on_host:
        return _no_change(
            "student",
            f"training that fits the device takes at least {format_bytes(min(on_host))} of host memory, and the system "
            "1 GiB; use a machine with more memory, more devices or a smaller student",
        )
    return _no_change(
        "student",
        "the student does not fit, even with one sample at a time, checkpointing and offloading; use more devices, a "
        "smaller student, LoRA (student.trained) or a lower max_tokens",
    )


def faster_choice(plan: Plan, student: ModelShapes, load: StudentLoad) -> dict[str, Any] | None:
    """Settings that fit and take less time than those of a configuration that fits; None if there are none.

    Micro-batches that keep a device busy are not divided further.
    """
    for changed in student_choices(load):
        if changed.float32_gradients != load.float32_gradients or not _is_busy(changed.micro_batch, load):
            continue
        memory = student_memory(student, changed)
        is_faster = _place(changed) < _place(load)
        if is_faster and memory.fits(plan.gpu_memory) and memory.fits_host(plan.host_memory):
            return {"set": _changes(load, changed), "bytes": memory.peak, "host_bytes": memory.host}
    return None


def _changes(load: StudentLoad, changed: StudentLoad) -> dict[str, Any]:
    """The settings in which two loads differ, and always the micro-batch or token budget."""
    found: dict[str, Any] = {"train.micro_batch": changed.micro_batch}
    if load.token_budget:
        found = {"train.token_budget": min(load.token_budget, changed.micro_batch * changed.length)}
    for name in ("optimizer", "gradient_checkpointing", "float32_gradients", "data_workers"):
        if (value := getattr(changed, name)) != getattr(load, name):
            found[f"train.{name}"] = value
    return found


def student_choices(load: StudentLoad) -> Iterator[StudentLoad]:
    """The same training with less and less device memory; those that are assumed to take the least time come first.

    Micro-batches too small to keep a device busy come after checkpointing and before offloading. Sums in 16 bits cost
    accuracy, so they come last, and with every other way to save memory.
    """
    for places in (ORDER[:OFFLOADING], ORDER[OFFLOADING:]):
        for busy in (True, False):
            sizes = [size for size in _halvings(load.micro_batch) if _is_busy(size, load) is busy]
            for optimizer, checkpointing in places:
                for size in sizes:
                    yield _changed(load, size, optimizer, checkpointing, load.float32_gradients)
    if load.float32_gradients:
        for size in _halvings(load.micro_batch):
            yield _changed(load, size, *ORDER[-1], False)


def _changed(
    load: StudentLoad, micro_batch: int, optimizer: OptimizerName, checkpointing: bool, float32: bool
) -> StudentLoad:
    return replace(
        load,
        optimizer=optimizer,
        gradient_checkpointing=checkpointing,
        float32_gradients=float32,
        micro_batch=micro_batch,
        accumulates=load.accumulates or micro_batch < load.micro_batch,
        batch_bytes=load.batch_bytes * micro_batch // load.micro_batch,
    )


def _is_busy(micro_batch: int, load: StudentLoad) -> bool:
    """Whether a forward pass of so many samples is as large as that of `load`, or large enough."""
    return micro_batch == load.micro_batch or micro_batch * load.length >= BUSY_TOKENS


def _place(load: StudentLoad) -> int:
    return ORDER.index((load.optimizer, load.gradient_checkpointing))


def _halvings(size: int) -> Iterator[int]:
    while size:
        yield size
        size //= 2


def _no_change(part: str, say: str) -> dict[str, Any]:
    return {"for": part, "set": {}, "bytes": None, "say": say}
