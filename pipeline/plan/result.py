"""A plan: its options, its figures, and its JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alignkd.pipeline.plan.disk.samples import DataSize
from alignkd.pipeline.plan.disk.store import StoreSize
from alignkd.pipeline.plan.evaluation import EvaluationPlan
from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.probe import Probe
from alignkd.pipeline.plan.stem import StemPlan


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan needs in addition to the configuration.

    Attributes:
        gpu_memory: bytes of each device; None takes the memory of `device`.
        host_memory: bytes of the machine's own memory; None takes this machine's.
        disk: bytes available for the store; None takes the free space at its path.
        device: a name in `DEVICES`; decides the memory if `gpu_memory` is not given.
        devices: number of devices that train together, and that run the dump side by side.
        samples, mean_tokens: size of the data set if there is no data to count.
        image_tokens: in that case, vision tokens of an image; None takes an image of 640 x 480 pixels.
        supervised_share: in that case, supervised share of the text tokens after the image.
        count: least number of samples to count.
        entries: kept tokens per supervised position, if known.
        probe: number of samples to run the teacher on; 0 for no probe.
    """

    gpu_memory: int | None = None
    host_memory: int | None = None
    disk: int | None = None
    device: str = "rtx3090"
    devices: int = 1
    samples: int | None = None
    mean_tokens: float | None = None
    image_tokens: int | None = None
    supervised_share: float = 0.5
    count: int = 4096
    entries: float | None = None
    probe: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainedPlan:
    """What a run trains.

    Attributes:
        text: the line that names it.
        parameters: trained parameters of the student; `adapters`: of the distillation adapters.
        of: all parameters of the student, those of LoRA included.
        checkpoint_bytes: bytes of a checkpoint: master weights and moments of every trained parameter.
    """

    text: str
    parameters: int
    adapters: int
    of: int
    checkpoint_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The figures of one dump and one training.

    Attributes:
        name: name of the stage; None in a file without stages.
        entries_per_position: kept tokens per supervised position.
        entries_source: where that figure comes from.
        choices: target -> codec -> bytes of that target over the whole store.
        profiles: profile -> bytes of the whole store.
        stem: whether the teacher's stem can give the alignment targets, and what that costs.
        student: None if the configuration trains no student.
        trained: what is trained of it.
        table: the student's memory for other numbers of devices, optimisers, and with or without checkpointing.
        padding: padded / real positions of the phases `dump` and `train`; empty if no data was read.
        hours: device -> phase -> hours on one device.
        probe: measurements, if a probe ran.
        advice: what to change, in order; empty if everything fits.
        faster: settings of training that fit and take less time than the present ones, or None.
        unused: a line on stored targets that no loss compares with, or None.
        evaluation: the evaluation at the end, if the configuration has a section `eval`.
        objective: as `planned_objective`.
    """

    name: str | None
    data: DataSize
    store: StoreSize
    entries_per_position: float
    entries_source: str
    choices: Mapping[str, Mapping[str, int]]
    profiles: Mapping[str, int]
    stem: StemPlan
    teacher: Memory
    student: Memory | None
    trained: TrainedPlan | None
    table: Sequence[Mapping[str, Any]]
    padding: Mapping[str, float]
    hours: Mapping[str, Mapping[str, float]]
    probe: Probe | None
    gpu_memory: int
    host_memory: int
    disk: int | None
    notes: Sequence[str]
    advice: Sequence[Mapping[str, Any]] = ()
    faster: Mapping[str, Any] | None = None
    unused: str | None = None
    evaluation: EvaluationPlan | None = None
    objective: Mapping[str, Any] | None = None

    @property
    def all_hours(self) -> dict[str, dict[str, float]]:
        """`hours` with the phase `eval` of all evaluated models, if there is one."""
        if self.evaluation is None:
            return {device: dict(phases) for device, phases in self.hours.items()}
        return {
            device: {**phases, "eval": self.evaluation.total_hours(device)} for device, phases in self.hours.items()
        }

    @property
    def fits_by(self) -> dict[str, bool]:
        """Part -> whether it fits."""
        fits = {
            "store": self.disk is None or self.store.total <= self.disk,
            "teacher": self.teacher.fits(self.gpu_memory),
        }
        if self.teacher.host:
            fits["teacher_host"] = self.teacher.fits_host(self.host_memory)
        if self.student is None:
            return fits
        fits |= {
            "student": self.student.fits(self.gpu_memory),
            "student_host": self.student.fits_host(self.host_memory),
        }
        return fits if self.evaluation is None else fits | {"eval": self.evaluation.fits(self.gpu_memory)}

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; bytes and hours are numbers."""
        rows = self.data.rows
        student = self.student
        return {
            "stage": self.name,
            "store_bytes": self.store.total,
            "store_bytes_by_target": dict(self.store.by_target),
            "store_bytes_by_codec": {target: dict(sizes) for target, sizes in self.choices.items()},
            "store_bytes_by_profile": dict(self.profiles),
            "stem": self.stem.to_json(),
            "teacher_memory_bytes": self.teacher.peak,
            "teacher_memory_by_part": dict(self.teacher.parts),
            "teacher_host_bytes": self.teacher.host or None,
            "teacher_host_by_part": dict(self.teacher.host_parts) or None,
            "objective": None if self.objective is None else dict(self.objective),
            "trained": None if self.trained is None else asdict(self.trained),
            "student_memory_bytes": None if student is None else student.peak,
            "student_memory_by_part": None if student is None else dict(student.parts),
            "student_host_bytes": None if student is None else student.host,
            "student_host_by_part": None if student is None else dict(student.host_parts),
            "student_memory_table": [dict(row) for row in self.table],
            "padding": dict(self.padding) or None,
            "hours": {device: dict(phases) for device, phases in self.all_hours.items()},
            "fits": all(self.fits_by.values()),
            "fits_by": self.fits_by,
            "gpu_memory_bytes": self.gpu_memory,
            "host_memory_bytes": self.host_memory,
            "disk_bytes": self.disk,
            "recommendation": [dict(step) for step in self.advice],
            "faster": None if self.faster is None else dict(self.faster),
            "data": {
                "samples": self.data.num_samples,
                "records": round(self.data.num_records),
                "counted": self.data.counted,
                "counted_all": self.data.exact,
                "unusable_share": self.data.unusable / max(1, self.data.counted),
                "mean_tokens": self.data.mean("length"),
                "longest": int(rows.length.max(initial=0)),
                "mean_supervised": self.data.mean("supervised"),
                "mean_queries": self.data.mean("queries"),
                "mean_images": self.data.mean("images"),
                "mean_vision_tokens": self.data.mean("vision"),
                "sources": [asdict(source) for source in self.data.sources],
            },
            "entries_per_position": self.entries_per_position,
            "entries_source": self.entries_source,
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "measured": None if self.probe is None else asdict(self.probe),
            "notes": [*self.notes, *([] if self.unused is None else [self.unused])],
        }
