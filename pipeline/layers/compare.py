"""Compares the attention layers of a configuration's teacher on some samples of its data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.config.run_config import RunConfig, StudentConfig
from alignkd.pipeline.console.printing import say
from alignkd.pipeline.data.reading_bar import ReadingBar
from alignkd.pipeline.layers.samples import ChosenSamples, choose_samples
from alignkd.pipeline.layers.teacher_pass import TeacherPass
from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.schema.targets.attention import LayerPairs
from alignkd.storage.tools.layers.figures import LayerFigures, LayerScan, scan_layers
from alignkd.storage.tools.layers.rows import (
    Floats,
    SampleLayers,
    distributions,
    sharpness,
    surprise,
)
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.preparation import PreparationThreads
from alignkd.teacher_dump.teacher import load_teacher
from alignkd.teacher_dump.watched_rows import WatchedRows
from alignkd.vlm.data.data_list import DataList, check_image_folders
from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.memory_faults import memory_errors

DEFAULT_CODEC = "float16"


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedLayers:
    """The layers of a teacher.

    Attributes:
        scan: figures and mean maps.
        examples: layer -> a row of the first sample's first image, float64 [C]: of all queries and heads the one with
            the largest surprise, without a common grid the sharpest.
        samples: number of samples.
        without_image, unusable: samples that were passed over: without an image, or (index, id, reason).
        num_layers: layers of the decoder.
        vision_tokens: the teacher's vision tokens of every image; None if they depend on the image.
        common_tokens: vision tokens of each image of the samples; None if their numbers differ.
        bytes_per_sample: layer -> mean bytes of a sample's attention, all heads, in the codec of the store.
        codec: that codec.
        student_layers: attention layers of the student; None if the configuration has no student, or if an earlier
            stage has not made it yet.
    """

    scan: LayerScan
    examples: Mapping[int, Floats]
    samples: int
    without_image: int
    unusable: list[tuple[int, str, str]]
    num_layers: int
    vision_tokens: int | None
    common_tokens: int | None
    bytes_per_sample: Mapping[int, float]
    codec: str
    pairs: LayerPairs
    student_layers: tuple[int, ...] | None = None

    @property
    def layers(self) -> tuple[LayerFigures, ...]:
        """The figures in the order of the layers."""
        return self.scan.layers


def compare_layers(config: RunConfig, count: int, *, pairs: LayerPairs = "tqv", seed: int = 0) -> ComparedLayers:
    """Run the teacher twice over `count` samples: once for sums and mean maps, once to compare the rows with them.

    Args:
        config: sections `data` and `teacher`; of `store` the codec of the attention, of `student` the layers.
        pairs: text or vision queries.
        seed: seed of the choice of samples.

    Raises:
        InputError: unusable data, checkpoint or teacher, no sample with an image, or out of memory.
    """
    job = replace(config.dump_job(), control=DumpControl(notice=say, reading=ReadingBar()))
    with memory_errors(
        f"free memory, or lower teacher.token_budget (now {job.teacher.token_budget}) or teacher.batch (now "
        f"{job.teacher.batch})"
    ):
        return replace(_compare(job, count, pairs, seed), student_layers=_student_layers(config.student))


def _student_layers(student: StudentConfig | None) -> tuple[int, ...] | None:
    if student is None:
        return None
    try:
        return PlannedModel(student.checkpoint, student.vision_config, student.processor).config.attention_layers
    except InputError:
        return None


def _compare(job: DumpJob, count: int, pairs: LayerPairs, seed: int) -> ComparedLayers:
    data = DataList(job.data, progress=job.control.reading)
    check_image_folders(data, job.data)
    teacher = job.open_teacher()
    preparation = teacher.preparation(job.template, max_tokens=job.max_tokens)
    folders = [one.images for one in job.data if one.images is not None]
    with PreparationThreads(preparation, folders, job.teacher.data_workers) as threads:
        chosen = choose_samples(data, count, seed, threads)
        if not any(len(sample.example.positions.attention_rows(pairs)) for sample in chosen.prepared):
            raise InputError(
                f"{data.path}: no text follows the images of the {len(chosen.prepared)} samples, so {pairs} attention "
                "has no rows; use --pairs vqv"
            )
        model = load_teacher(job, teacher)
        watched = WatchedRows(model, model.config.attention_layers, pairs)
        scan, examples = _scan(job, watched, threads, chosen)
    codec = _codec(job)
    return ComparedLayers(
        scan=scan,
        examples=examples,
        samples=len(chosen.prepared),
        without_image=chosen.without_image,
        unusable=[(found.sample.index, found.sample.id, str(found.reason)) for found in chosen.unusable],
        num_layers=model.config.num_layers,
        vision_tokens=model.config.vision_tokens,
        common_tokens=chosen.common_tokens,
        bytes_per_sample={found.layer: _bytes(chosen, pairs, found.heads, codec) for found in scan.layers},
        codec=codec,
        pairs=pairs,
    )


def _scan(
    job: DumpJob, watched: WatchedRows, threads: PreparationThreads, chosen: ChosenSamples
) -> tuple[LayerScan, dict[int, Floats]]:
    """The figures and the example rows."""
    has_grid = chosen.common_tokens is not None
    # disable=None: no bar if stderr is not a terminal
    with tqdm(total=(1 + has_grid) * len(chosen.prepared), desc="layers", unit="sample", disable=None) as bar:
        teacher_pass = TeacherPass(job, watched, threads, chosen.prepared, bar.update)
        scan = scan_layers(teacher_pass, watched.pairs, has_grid=has_grid)
    (examples,) = teacher_pass.of(chosen.prepared[:1], lambda rows: _examples(rows, scan))
    return scan, examples


def _examples(layers: SampleLayers, scan: LayerScan) -> dict[int, Floats]:
    """Layer -> the row of the first image that `ComparedLayers.examples` describes."""
    found = {}
    for layer, blocks in layers:
        probs_RHC, _ = distributions(blocks[0])
        values_RH = surprise(probs_RHC, scan.mean_maps[layer]) if layer in scan.mean_maps else sharpness(probs_RHC)
        if values_RH.size:
            row, head = np.unravel_index(int(values_RH.argmax()), values_RH.shape)
            found[layer] = probs_RHC[row, head]
    return found


def _bytes(chosen: ChosenSamples, pairs: LayerPairs, heads: int, codec: str) -> float:
    """Mean bytes of a sample's attention of one layer, as the codec stores it."""
    maps = [sample.example.positions for sample in chosen.prepared]
    shapes = [(len(at.attention_rows(pairs)), heads, len(at.attention_cols(pairs))) for at in maps]
    parts = [part for shape in shapes for part in get_codec(codec).parts(shape).values()]
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in parts) / len(shapes)


def _codec(job: DumpJob) -> str:
    """The codec of the store's attention; float16 where attention is not stored."""
    attention = job.store.attention
    codec = attention if isinstance(attention, str) else attention.stored_codec
    return DEFAULT_CODEC if codec in NOT_STORED else codec
