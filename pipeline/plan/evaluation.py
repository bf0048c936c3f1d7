"""The evaluation at the end of a run in a plan: questions, hours and weights, or what is missing to ask them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.folder import benchmark_folder
from alignkd.evaluation.question import Question
from alignkd.pipeline.config.baseline import check_baseline
from alignkd.pipeline.config.eval_place import EvaluatedModel
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.console.printing import format_bytes
from alignkd.pipeline.plan.disk.samples import BYTES_PER_TOKEN, TOKENS_BEFORE_IMAGE
from alignkd.pipeline.plan.memory.result import BESIDE_TORCH
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.time.devices import DEVICES
from alignkd.pipeline.plan.time.hours import TEACHER_SHARE, hours
from alignkd.pipeline.plan.time.operations import forward_flops
from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.devices import TORCH_DTYPES


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What the section `eval` asks for.

    Attributes:
        models: the models that are evaluated, one after the other.
        questions: questions of each by benchmark; None where the benchmark cannot be asked.
        images: different images of these questions.
        problems: why not, and which model is missing; one line each.
        folder: where answers and scores go; None if no training is configured.
        dtype: dtype of the weights.
        weight_bytes: bytes of the weights of each model.
        hours: device -> model -> hours of one pass over prompts and images on one such device; answers not included.
        on_device: whether the section leaves the choice of the device to the machine, or names another than the CPU.
    """

    models: tuple[str, ...]
    questions: dict[str, int | None]
    images: dict[str, int | None]
    problems: tuple[str, ...]
    folder: str | None
    dtype: str
    weight_bytes: dict[str, int]
    hours: dict[str, dict[str, float]]
    on_device: bool

    def line(self) -> str:
        """The questions as one line."""
        counts = ", ".join(f"{name} {'?' if count is None else f'{count:,}'}" for name, count in self.questions.items())
        total = sum(count or 0 for count in self.questions.values())
        where = "" if self.folder is None else f" in {self.folder}"
        return f"eval      {', '.join(self.models)}: {total:,} questions each ({counts}); answers and scores{where}"

    def memory_line(self, device: int) -> str:
        """The weights as one line.

        Args:
            device: bytes of the device.
        """
        sizes = ", ".join(f"{model} {format_bytes(size)}" for model, size in self.weight_bytes.items())
        where = "on the CPU"
        if self.on_device:
            fits = "fits" if self.fits(device) else "DOES NOT FIT"
            where = f"one model at a time; plus {format_bytes(BESIDE_TORCH)} on {format_bytes(device)}: {fits}"
        return f"  weights in {self.dtype}: {sizes}; {where}"

    def total_hours(self, device: str) -> float:
        """Hours of all models on one device."""
        return sum(self.hours[device].values())

    def fits(self, device: int) -> bool:
        """Whether the weights of each model fit a device of so many bytes; batches that do not fit are halved."""
        return not self.on_device or not self._too_large(device)

    def advice(self, device: int) -> dict[str, Any]:
        """What to change if it does not fit, as other parts of a plan say it."""
        names = self._too_large(device)
        smaller = "set eval.dtype: float16, " if self.dtype == "float32" else ""
        return {
            "for": "eval",
            "set": {},
            "bytes": None,
            "say": f"the weights of {' and '.join(names)} do not fit in {self.dtype}; {smaller}evaluate on a device "
            "with more memory, set eval.device: cpu, or leave the model out (eval.teacher, eval.baseline)",
        }

    def _too_large(self, device: int) -> list[str]:
        return [model for model, size in self.weight_bytes.items() if size + BESIDE_TORCH > device]


@dataclass(frozen=True)
class _Asked:
    """The questions of a benchmark: their number, their different images, and bytes of their texts together."""

    questions: int
    images: int
    with_image: int
    text_bytes: int

    @classmethod
    def of(cls, questions: Sequence[Question]) -> "_Asked":
        pictures = [one.image for one in questions if one.image is not None]
        text = sum(len(one.turn.encode()) for one in questions)
        return cls(len(questions), len(set(pictures)), len(pictures), text)

    def operations(self, model: ModelShapes) -> float:
        """One pass over all prompts, and of the tower over each image; the head runs once per question."""
        if not self.questions:
            return 0.0
        # of models whose images differ in size, `model.image` was prepared by them
        before = model.image.tokens_before or TOKENS_BEFORE_IMAGE
        tokens = before + (self.text_bytes / BYTES_PER_TOKEN + self.with_image * model.image.tokens) / self.questions
        share = self.images / self.questions
        return self.questions * forward_flops(model, tokens=tokens, images=share, supervised=1)


def plan_evaluation(
    config: RunConfig, shapes: Mapping[EvaluatedModel, ModelShapes], trained: Collection[Path] = ()
) -> EvaluationPlan | None:
    """The evaluation of a configuration; None if it has no section `eval`.

    Args:
        shapes: of `student` and, if it is evaluated, `teacher`; the baseline is assumed to have those of the student.
        trained: students of earlier stages, which may not exist yet.
    """
    section = config.eval
    if section is None:
        return None
    asked: dict[str, _Asked | None] = {}
    problems = []
    for name in section.names:
        try:
            found = BENCHMARKS[name].questions(benchmark_folder(section.data, name))
        except InputError as error:
            problems.append(f"{name}: {error}")
            asked[name] = None
        else:
            asked[name] = _Asked.of(found[: section.limit])
    if section.baseline is not None and Path(section.baseline) not in trained:
        try:
            check_baseline(config)
        except InputError as error:
            problems.append(str(error))
    models = {model: shapes["student" if model == "baseline" else model] for model in section.models}
    operations = {
        model: sum(one.operations(shape) for one in asked.values() if one is not None)
        for model, shape in models.items()
    }
    size = TORCH_DTYPES[section.dtype].itemsize
    return EvaluationPlan(
        models=section.models,
        questions={name: None if one is None else one.questions for name, one in asked.items()},
        images={name: None if one is None else one.images for name, one in asked.items()},
        problems=tuple(problems),
        folder=None if config.train is None else str(section.folder(config.train.output)),
        dtype=section.dtype,
        weight_bytes={model: size * shape.size.parameters["total"] for model, shape in models.items()},
        hours={
            name: {model: hours(count, device, TEACHER_SHARE) for model, count in operations.items()}
            for name, device in DEVICES.items()
        },
        on_device=section.device is None or not section.device.startswith("cpu"),
    )
