"""A plan as text: computed, measured and assumed figures, and what to change."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkd.pipeline.console.printing import format_bytes, format_duration
from alignkd.pipeline.plan.evaluation import EvaluationPlan
from alignkd.pipeline.plan.from_stores import TrainingPlan
from alignkd.pipeline.plan.memory.result import BESIDE_TORCH, BESIDE_TRAINING, Memory
from alignkd.pipeline.plan.objective import objective_line
from alignkd.pipeline.plan.result import Plan
from alignkd.pipeline.plan.stem import MAX_SHARE, READ_RATE, StemPlan
from alignkd.pipeline.plan.time.hours import STUDENT_SHARE, TEACHER_SHARE
from alignkd.vlm.attention.layer_choice import shown_layers


def training_plan_lines(plan: TrainingPlan) -> Iterator[str]:
    """All lines of the plan of a training from several stores."""
    if plan.name is not None:
        yield f"stage {plan.name}"
    yield (
        f"stores    {plan.per_pass:,} samples per pass, {plan.mean_tokens:.0f} tokens on average, longest "
        f"{plan.longest}; {plan.steps:,} steps see {plan.samples_seen:,} samples"
    )
    rows = [("source", "samples", "weight", "per pass", "share")]
    rows += [
        (row["name"], f"{row['samples']:,}", f"{row['weight']:.4g}", f"{row['per_pass']:,}",
         f"{row['share']:.1%}")
        for row in plan.stores
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
    for note in plan.notes:
        yield f"  {note}"
    if plan.objective is not None:
        yield objective_line(plan.objective)
    yield ""
    yield from _memory_lines("training", plan.student, plan.gpu_memory)
    yield from _host_lines("training", plan.student, plan.host_memory, fits=plan.fits_by["student_host"])
    yield ""
    yield from _student_table(plan)
    yield ""
    yield f"hours     on one device, arithmetic: {STUDENT_SHARE:.0%} of the data sheet's rate assumed"
    yield _padding_line({"train": plan.padding})
    yield from _hours_of_devices(plan.all_hours)
    yield from _evaluation_lines(plan.evaluation, plan.gpu_memory)
    yield ""
    fits = plan.fits_by
    if all(fits.values()):
        yield "everything fits"
    if not (fits["student"] and fits["student_host"]):
        yield "does not fit; the table shows other settings"
    if plan.evaluation is not None and not fits["eval"]:
        yield f"eval: {plan.evaluation.advice(plan.gpu_memory)['say']}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """All lines of a plan, part by part."""
    if plan.name is not None:
        yield f"stage {plan.name}"
    yield from _data_lines(plan)
    yield ""
    yield from _store_lines(plan)
    yield ""
    yield from _stem_lines(plan)
    yield ""
    yield from _memory_lines("teacher pass", plan.teacher, plan.gpu_memory)
    if plan.teacher.host:
        fits = plan.fits_by["teacher_host"]
        yield from _host_lines("teacher pass", plan.teacher, plan.host_memory, fits=fits)
    if plan.student is not None:
        yield ""
        yield from _trained_lines(plan)
        yield from _memory_lines("training", plan.student, plan.gpu_memory)
        yield from _host_lines("training", plan.student, plan.host_memory, fits=plan.fits_by["student_host"])
        yield ""
        yield from _student_table(plan)
    yield ""
    yield from _hour_lines(plan)
    yield from _evaluation_lines(plan.evaluation, plan.gpu_memory)
    yield ""
    yield from _advice_lines(plan)


def _evaluation_lines(evaluation: EvaluationPlan | None, device: int) -> Iterator[str]:
    if evaluation is None:
        return
    yield ""
    yield evaluation.line()
    yield evaluation.memory_line(device)
    yield (
        f"  hours above: prompts and images alone, at {TEACHER_SHARE:.0%} of the data sheet's rate; the time of the "
        "answers is not planned"
    )
    for problem in evaluation.problems:
        yield f"  cannot be asked: {problem}"


def _data_lines(plan: Plan) -> Iterator[str]:
    data = plan.data
    how = "all of them counted" if data.exact else f"{data.counted:,} counted, the rest by proportion"
    if not plan.padding:  # no data was read
        how = "assumed"
    yield (
        f"data      {data.num_samples:,} samples ({how}), about {data.num_records:,.0f} usable; "
        f"{data.mean('length'):.0f} tokens on average, longest counted {int(data.rows.length.max())}; per sample "
        f"{data.mean('supervised'):.0f} supervised, {data.mean('queries'):.0f} text queries, "
        f"{data.mean('images'):.2f} images"
    )
    if len(data.sources) > 1:
        for source in data.sources:
            share = f", share {source.share:g}" if source.share < 1 else ""
            yield (
                f"          {source.name}: {source.num_samples:,} samples{share}; of {source.counted:,} counted "
                f"{source.unusable:,} unusable, {source.mean_tokens:.0f} tokens and {source.mean_images:.2f} images on "
                "average"
            )
    for note in data.notes:
        yield f"          {note}"


def _store_lines(plan: Plan) -> Iterator[str]:
    room = "" if plan.disk is None else f", room for {format_bytes(plan.disk)}: {_fits(plan.fits_by['store'])}"
    yield f"store     {format_bytes(plan.store.total)} (arithmetic){room}"
    per_sample = max(1.0, plan.data.num_records)
    width = max(12, *map(len, plan.store.by_target))
    for target, size in plan.store.by_target.items():
        yield f"  {target:<{width}} {format_bytes(size):>10}  {format_bytes(round(size / per_sample)):>10} per sample"
    if plan.unused is not None:
        yield f"  {plan.unused}"
    if plan.entries_per_position:
        yield f"  {plan.entries_per_position:.1f} kept tokens per supervised position ({plan.entries_source})"
    yield "  by codec"
    for target, sizes in plan.choices.items():
        shown = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
        yield f"    {target:<11} {shown}"
    profiles = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.profiles.items())
    yield f"    whole store by profile: {profiles}"


def _stem_lines(plan: Plan) -> Iterator[str]:
    stem = plan.stem
    if stem.sizes is None or stem.store_bytes is None:
        yield f"stem      none: {stem.reason}"
        return
    known = {True: "usable", False: "NOT usable", None: "not known to be usable"}
    yield f"stem      {known[stem.usable]}: {stem.reason}"
    share = f", {stem.operations:.1%} more operations per step" if stem.operations else ""
    yield (
        f"  attention and vision targets for 0 bytes: the store then takes {format_bytes(stem.store_bytes)} (profile "
        f"stem), training {format_bytes(stem.sizes.device)} more on the device and {format_bytes(stem.sizes.host)} on "
        f"the host{share} (arithmetic)"
    )
    if stem.has_whole_layers:
        yield from _deeper_stem_lines(stem)
    if stem.recommended:
        yield f"  recommended: set store.profile: stem  (saves {format_bytes(stem.saved_bytes)})"


def _deeper_stem_lines(stem: StemPlan) -> Iterator[str]:
    """What whole layers cost in every step, and the bytes of the attention that they replace."""
    seconds, read = "", ""
    if stem.step_seconds:
        seconds = f" ({stem.step_seconds:.3g} s more on one device)"
        read = f"; {stem.read_seconds:.3g} s to read per step at {READ_RATE / 1e6:.0f} MB/s, assumed"
    yield (
        f"  depth {stem.depth}: whole in every step, {_layers(range(stem.depth - 1))}{seconds}; in the store instead, "
        f"attention of {_layers(stem.layers)}, {format_bytes(stem.attention_bytes)} ({stem.attention_codec}{read})"
    )
    if stem.storing_is_cheaper:
        yield (
            f"  recommended: {stem.attention_key}: {stem.attention_codec}, because the stem adds more than "
            f"{MAX_SHARE:.0%} of a step's operations and takes longer than reading"
        )


def _layers(numbers: Sequence[int]) -> str:
    return f"layer{'' if len(numbers) == 1 else 's'} {shown_layers(numbers)}"


def _trained_lines(plan: Plan) -> Iterator[str]:
    if plan.objective is not None:
        yield objective_line(plan.objective)
    if plan.trained is not None:
        yield (
            f"trains    {plan.trained.text}, and {plan.trained.adapters / 1e6:.3g} M of the adapters; a checkpoint "
            f"takes {format_bytes(plan.trained.checkpoint_bytes)}"
        )


def _memory_lines(name: str, memory: Memory, device: int) -> Iterator[str]:
    yield (
        f"{name:<9} {format_bytes(memory.peak)} on the device at most (arithmetic); plus "
        f"{format_bytes(BESIDE_TORCH)} outside torch on {format_bytes(device)}: {_fits(memory.fits(device))}"
    )
    yield from _part_lines(memory.parts)


def _host_lines(name: str, memory: Memory, host: int, *, fits: bool) -> Iterator[str]:
    yield (
        f"{name:<9} {format_bytes(memory.host)} of host memory at most (arithmetic; CUDA's share is assumed); plus "
        f"{format_bytes(BESIDE_TRAINING)} for the system on {format_bytes(host)}: {_fits(fits)}"
    )
    yield from _part_lines(memory.host_parts)


def _part_lines(parts: Mapping[str, int]) -> Iterator[str]:
    return (f"  {part:<34} {format_bytes(size):>10}" for part, size in parts.items() if size)


def _student_table(plan: Plan | TrainingPlan) -> Iterator[str]:
    yield (
        "training on n devices (several: ZeRO-2), memory of each without and with gradient_checkpointing; "
        "`!` does not fit"
    )
    optimizers = list(dict.fromkeys(str(row["optimizer"]) for row in plan.table))
    yield "  " + "  ".join(["devices", *(f"{name:>22}" for name in optimizers)])
    for count in dict.fromkeys(row["devices"] for row in plan.table):
        rows = [row for row in plan.table if row["devices"] == count]
        pairs = (" ".join(f"{_cell(row):>10}" for row in rows if row["optimizer"] == name) for name in optimizers)
        yield "  " + "  ".join([f"{count:>7}", *(f"{pair:>22}" for pair in pairs)])


def _cell(row: Mapping[str, object]) -> str:
    return f"{format_bytes(int(str(row['bytes'])))}{'' if row['fits'] else ' !'}"


def _hour_lines(plan: Plan) -> Iterator[str]:
    yield (
        f"hours     on one device, arithmetic: {TEACHER_SHARE:.0%} of the data sheet's rate assumed for the teacher "
        f"pass, {STUDENT_SHARE:.0%} for training"
    )
    yield _padding_line(plan.padding)
    yield from _hours_of_devices(plan.all_hours)
    if plan.probe is not None:
        probe = plan.probe
        seconds = plan.data.num_samples / max(probe.samples_per_second, 1e-9)
        yield (
            f"  measured on {probe.device}: {probe.samples_per_second:.2f} samples/s over {probe.samples} samples: "
            f"dump {format_duration(seconds)}; {format_bytes(round(probe.store_bytes_per_sample))} per sample"
            + ("" if probe.device_memory_bytes is None else f"; {format_bytes(probe.device_memory_bytes)} allocated")
        )


def _padding_line(padding: Mapping[str, float]) -> str:
    if not padding:
        return "  without padding: the lengths of the samples are not known"
    return "  padded / real positions: " + ", ".join(f"{phase} {ratio:.2f}" for phase, ratio in padding.items())


def _hours_of_devices(hours: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for device, phases in hours.items():
        yield f"  {device:<10} " + "  ".join(
            f"{phase} {format_duration(3600 * number):>9}" for phase, number in phases.items()
        )


def _advice_lines(plan: Plan) -> Iterator[str]:
    if all(plan.fits_by.values()):
        yield "everything fits"
    for step in plan.advice:
        yield f"{step['for']}: " + (step["say"] if "say" in step else _settings(step))
    if plan.faster is not None:
        yield f"training takes less time if you set {_settings(plan.faster).removeprefix('set ')}"


def _settings(step: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key}: {str(value).lower()}" for key, value in step["set"].items())
    library = ", which needs bitsandbytes" if step["set"].get("train.optimizer") == "adamw_8bit" else ""
    return f"set {shown}{library}  (then {format_bytes(step['bytes'])})"


def _fits(yes: bool) -> str:
    return "fits" if yes else "DOES NOT FIT"
