"""The plan of a training from a list of stores that exist: samples per pass, memory and hours, from their indices."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.config.eval_place import EvaluatedModel
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.evaluation import EvaluationPlan, plan_evaluation
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.micro_batch import LargestMicroBatch, may_accumulate
from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.pipeline.plan.memory.table import memory_table
from alignkd.pipeline.plan.objective import planned_objective
from alignkd.pipeline.plan.result import PlanOptions
from alignkd.pipeline.plan.time.devices import DEVICES, device_named
from alignkd.pipeline.plan.time.hours import training_hours, training_operations
from alignkd.pipeline.plan.time.padding import STEPS, training_padding
from alignkd.storage import SampleOrder, StoreError, StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.domains.order import DomainOrder
from alignkd.student_train.data.samples.held_out import held_out_of
from alignkd.student_train.data.samples.lengths import sequence_lengths
from alignkd.student_train.data.samples.pairs import not_drawn
from alignkd.student_train.objective.attention.layer_map import number_of_pairs
from alignkd.student_train.objective.attention.match import COPIES_OF_FORM
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.checks.agreement import check_stores_agree
from alignkd.student_train.run.checks.target_sources import needs_head, stem_of_run
from alignkd.student_train.run.checks.unused import unused_of_store
from alignkd.student_train.run.mixture import Mixture
from alignkd.vlm.hardware.device_report import host_memory
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.stem.file import StemInfo


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPlan:
    """The figures of one training.

    Attributes:
        name: name of the stage; None in a file without stages.
        stores: the rows of `Mixture.rows`.
        per_pass: samples of one pass.
        steps: optimiser steps on one device; of an extension from the beginning of the run that it extends.
        samples_seen: samples of all steps.
        longest: embedded tokens of the longest sample that is trained on or held out.
        mean_tokens: mean over a pass.
        padding: padded / real positions of the first steps on one device.
        student: memory of training.
        table: the student's memory for other numbers of devices, optimisers, and with or without checkpointing.
        hours: device -> hours of the whole training on one such device.
        notes: lines on stored targets that no loss compares with, and on the choice of samples.
        evaluation: the evaluation at the end, if the configuration has a section `eval`.
        objective: as `planned_objective`.
    """

    name: str | None
    stores: Sequence[Mapping[str, Any]]
    per_pass: int
    steps: int
    samples_seen: int
    longest: int
    mean_tokens: float
    padding: float
    student: Memory
    table: Sequence[Mapping[str, Any]]
    hours: Mapping[str, float]
    gpu_memory: int
    host_memory: int
    notes: Sequence[str] = ()
    evaluation: EvaluationPlan | None = None
    objective: Mapping[str, Any] | None = None

    @property
    def fits_by(self) -> dict[str, bool]:
        """Part -> whether it fits."""
        fits = {
            "student": self.student.fits(self.gpu_memory),
            "student_host": self.student.fits_host(self.host_memory),
        }
        return fits if self.evaluation is None else fits | {"eval": self.evaluation.fits(self.gpu_memory)}

    @property
    def all_hours(self) -> dict[str, dict[str, float]]:
        """Device -> phase -> hours: `train`, and `eval` of all evaluated models, if there is one."""
        more = self.evaluation
        return {
            device: {"train": number} if more is None else {"train": number, "eval": more.total_hours(device)}
            for device, number in self.hours.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; bytes and hours are numbers."""
        return {
            "stage": self.name,
            "stores": [dict(row) for row in self.stores],
            "samples_per_pass": self.per_pass,
            "objective": None if self.objective is None else dict(self.objective),
            "steps": self.steps,
            "samples_seen": self.samples_seen,
            "longest": self.longest,
            "mean_tokens": self.mean_tokens,
            "padding": {"train": self.padding},
            "student_memory_bytes": self.student.peak,
            "student_memory_by_part": dict(self.student.parts),
            "student_host_bytes": self.student.host,
            "student_host_by_part": dict(self.student.host_parts),
            "student_memory_table": [dict(row) for row in self.table],
            "hours": self.all_hours,
            "fits": all(self.fits_by.values()),
            "fits_by": self.fits_by,
            "gpu_memory_bytes": self.gpu_memory,
            "host_memory_bytes": self.host_memory,
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "notes": list(self.notes),
        }


def training_plan(
    config: RunConfig,
    options: PlanOptions,
    student: ModelShapes,
    *,
    teacher: ModelShapes | None = None,
    name: str | None = None,
    trained: Collection[Path] = (),
) -> TrainingPlan:
    """Plan a training from a list of stores.

    Args:
        student: shapes of the student.
        teacher: shapes of the teacher, if it is evaluated.
        name: name of the stage.
        trained: see `plan_evaluation`.

    Raises:
        StoreError: a store does not exist yet, or is damaged.
        TrainError: the stores do not fit together, a loss has no target, or the global batch cannot be divided among
            the devices.
    """
    assert config.train is not None
    job, train = config.train_job(), config.train
    train.global_batch_size(options.devices)  # refused by the training, too
    shapes: dict[EvaluatedModel, ModelShapes] = {"student": student}
    if teacher is not None:
        shapes["teacher"] = teacher
    readers = [_opened(store.path) for store in job.stores]
    check_stores_agree(readers, train)
    held_out = held_out_of(readers, train.validation.share if train.validation else None)
    unpaired = not_drawn(readers, held_out, in_pairs=train.in_pairs)
    mixture = Mixture.of(
        job.stores, readers, job.source_weights, held_out=unpaired, domain_weights=train.domain_weights
    )
    lengths = np.concatenate([sequence_lengths(reader, student.size.vision_tokens) for reader in readers])
    measured = np.concatenate([portion.measured for portion in mixture.portions])
    used = np.unique(np.concatenate([mixture.trained, held_out, measured]))
    load = _load(config, options, student, readers, lengths, used)
    steps, device = (
        train.optimiser_steps(mixture.per_pass, 1),
        options.gpu_memory or device_named(options.device).memory,
    )
    units = steps * train.global_batch_size(1)
    seen, weights = units * (2 if train.in_pairs else 1), _weights(mixture, len(lengths))
    order = _first_order(mixture, train)
    padding = training_padding(train, lengths, order, Pairs.of_stores(readers) if train.in_pairs else None)
    shape, stem = _sample_shape(student, readers, padding * lengths, weights), stem_of_run(readers[0], train)
    operations = training_operations(
        config,
        student,
        shape,
        per_pass=mixture.per_pass,
        held_out=len(held_out),
        measured=len(measured),
        stem=0.0 if stem is None else _stem_operations(stem, shape["tokens"]),
    )
    return TrainingPlan(
        name=name,
        stores=mixture.rows(),
        per_pass=mixture.per_pass,
        steps=steps,
        samples_seen=seen,
        longest=int(lengths[used].max()),
        mean_tokens=float(np.average(lengths, weights=weights)),
        padding=padding,
        student=student_memory(student, load),
        table=memory_table(student, load, device),
        hours={name: training_hours(config, operations, found) for name, found in DEVICES.items()},
        gpu_memory=device,
        host_memory=host_memory() if options.host_memory is None else options.host_memory,
        notes=[
            *[line for reader in readers if (line := unused_of_store(reader, train)) is not None],
            *_notes_on_samples(mixture),
        ],
        evaluation=plan_evaluation(config, shapes, trained),
        objective=planned_objective(train),
    )


def _first_order(mixture: Mixture, train: TrainConfig) -> SampleOrder:
    """The order of the run; weights of domains, which follow the student, are taken to be equal in the first steps."""
    order = mixture.order(train.seed, train.global_batch_size(1))
    if isinstance(order, DomainOrder):
        while not order.knows(STEPS):
            order.add([1 / len(order.domains)] * len(order.domains))
    return order


def _notes_on_samples(mixture: Mixture) -> list[str]:
    """Lines on lists of samples, and on weights that only the run will find."""
    found = [] if mixture.domain_weights is None and not any(mixture.lists) else list(mixture.lines())
    if (weights := mixture.domain_weights) is not None:
        found.append(
            f"weights of domains follow the student ({weights.method}); shares of a pass and hours are those of equal "
            "frequency of all samples"
        )
    return found


def _opened(path: Path | str) -> StoreReader:
    if isinstance(path, Path) and not path.exists():
        raise StoreError(
            f"store {path}: not there yet; a training from several stores is planned from them: dump first"
        )
    reader = StoreReader(path)
    if not len(reader):
        raise StoreError(f"store {path}: holds no samples; leave it out")
    return reader


def _load(
    config: RunConfig,
    options: PlanOptions,
    student: ModelShapes,
    readers: Sequence[StoreReader],
    lengths: NDArray[np.int64],
    used: NDArray[np.int64],
) -> StudentLoad:
    """A micro-batch padded to the longest sample that is used, of all stores."""
    assert config.student is not None and config.train is not None
    train, first = config.train, readers[0]
    shapes, largest = first.manifest.shapes, LargestMicroBatch.of(train, lengths[used], options.devices)
    queries = largest.most(_over(readers, "num_queries")[used])
    blocks = int(_over(readers, "num_images")[used].max()) if shapes.vision_tokens is not None else 1
    vision = largest.most(_vision(student, readers)[used])
    stem = stem_of_run(first, train)
    adapters = {TERMS[name].adapter for name in train.losses.weights}
    stored = sum(sum(entry.bytes for entry in commit.files) for reader in readers for commit in reader.commits)
    targets = round(stored / len(lengths) * largest.length / max(1.0, float(lengths.mean())))
    return StudentLoad(
        dtype=config.student.dtype,
        micro_batch=largest.samples,
        token_budget=train.token_budget or 0,
        length=largest.length,
        supervised=largest.most(_over(readers, "num_supervised")[used]),
        vision=vision,
        queries=queries * blocks if "attention" in train.losses.weights else 0,
        teacher_heads=shapes.num_heads,
        teacher_hidden=shapes.hidden_size,
        hidden_logits=needs_head(first.manifest, train.losses),
        head_chunk_mib=train.losses.head_chunk_mib,
        attention_chunk_bytes=train.losses.attention_chunk_bytes("cuda"),
        attention_copies=COPIES_OF_FORM[train.losses.attention_form],
        attention_layers=number_of_pairs(train.losses.attention_layers, student.size.num_layers),
        devices=options.devices,
        optimizer=train.optimizer,
        gradient_checkpointing=train.gradient_checkpointing,
        kernels=train.kernels,
        accumulates=may_accumulate(train, options.devices),
        stem_weights=0 if stem is None else stem.path.stat().st_size,  # at most: its embeddings stay on the host
        float32_gradients=train.float32_gradients,
        data_workers=train.data_workers,
        trained=config.student.trained_config,
        attn_adapter="attn_adapter" in adapters,
        proj_adapter="proj_adapter" in adapters,
        state_adapter="state_adapter" in adapters and shapes.hidden_size != student.size.hidden_size,
        relations="relation" in train.losses.weights,
        head_positions=-(-vision // largest.samples) if train.losses.needs_teacher_head else 0,
        batch_bytes=largest.samples * (student.array_bytes_of(vision) + targets),
    )


def _stem_operations(stem: StemInfo, tokens: float) -> float:
    """Operations that a stem adds to a sample's step: two per token and weight on the device, all of them used."""
    return 2 * tokens * stem.sizes.device / TORCH_DTYPES[stem.dtype].itemsize


def _sample_shape(
    student: ModelShapes,
    readers: Sequence[StoreReader],
    lengths: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> dict[str, float]:
    """An average sample of a pass."""

    def mean(values: NDArray[Any]) -> float:
        return float(np.average(values, weights=weights))

    return {
        "tokens": mean(lengths),
        "images": mean(_over(readers, "num_images")),
        "supervised": mean(_over(readers, "num_supervised")),
        "vision": mean(_vision(student, readers)),
    }


def _weights(mixture: Mixture, num_samples: int) -> NDArray[np.float64]:
    """How often each sample is seen per pass, float64 [samples]."""
    weights = np.zeros(num_samples)
    for portion in mixture.portions:
        weights[portion.part.positions] = portion.part.weight
    return weights


def _vision(student: ModelShapes, readers: Sequence[StoreReader]) -> NDArray[np.int64]:
    """Vision tokens of each sample in the student, int64 [samples]."""
    if student.size.vision_tokens is None:
        return _over(readers, "num_vision")
    return _over(readers, "num_images") * student.size.vision_tokens


def _over(readers: Sequence[StoreReader], name: str) -> NDArray[np.int64]:
    return np.concatenate([getattr(reader, name) for reader in readers])
