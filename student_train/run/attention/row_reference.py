"""The figures that weights of attention rows are measured against, from a fixed choice of the store's samples.

They are computed on the first rank at the start of a run, and kept in the output folder, so a resumed run has the same.
A run that starts again before its first checkpoint computes them again, because its settings may have changed.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.division import Division
from alignkd.student_train.data.loader import load_batch
from alignkd.student_train.data.samples.held_out import fixed_subset
from alignkd.student_train.errors import TrainError, unreadable, writing
from alignkd.student_train.losses.attention.row_weights import renormalised
from alignkd.student_train.losses.attention.squared_error import length_mask
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.attention.row_reference import RowReference, RowReferences, row_weights
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.student_train.objective.attention.term import head_weights
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.run.attention.chosen import chosen_attention
from alignkd.student_train.run.checks.target_sources import stem_lookup
from alignkd.student_train.run.plan import RunPlan
from alignkd.vlm.weights.tensor_file import open_tensors, save_tensors

logger = logging.getLogger(__name__)
FILE = "attention_rows.safetensors"
# standard errors of a mean over some thousand rows are below a hundredth of it
SAMPLES = 64
_WEIGHT, _MAP = "mean_weight", "mean_map"


def references_of_run(plan: RunPlan, student: DistilledStudent, *, resumed: bool) -> RowReferences | None:
    """The references of a run's weights of rows, on the student's device; None without weights. Called by ALL ranks.

    Args:
        student: on its device; it encodes images if the stem computes the attention.
        resumed: whether the run has a checkpoint of its own; then the kept references are read.

    Raises:
        TrainError: no sample has an image, or all rows weigh nothing; or the file cannot be written or read.
    """
    match = plan.attention
    if match is None or match.row_weights == "none":
        return None
    path = plan.config.output / FILE
    plan.ranks.on_first(lambda: None if resumed and path.exists() else _write(path, plan, match, student))
    return RowReferences(_read(path, match)).to(plan.ranks.device)


def _write(path: Path, plan: RunPlan, match: AttentionMatch, student: DistilledStudent) -> None:
    has_image = np.concatenate([reader.has_image for reader in plan.samples.readers])
    images = np.concatenate([reader.num_images for reader in plan.samples.readers])
    positions = np.flatnonzero(has_image & np.isin(np.arange(len(images)), plan.mixture.trained) & (images == 1))
    chosen = fixed_subset(plan.samples, positions, SAMPLES)
    if not len(chosen):
        raise TrainError(
            f"losses.attention_row_weights is {match.row_weights!r}, but no sample of store {plan.reader.path} has a "
            "single image, from which weights are measured; set it to 'none'"
        )
    logger.info("attention: weights of rows (%s) are measured on %d samples", match.row_weights, len(chosen))
    batches = list(_batches(plan, student, chosen))
    tensors: dict[str, Tensor] = {}
    for place, pair in enumerate(match.pairs):
        weight, mean_map = _measured(student, match, place, batches)
        if not weight > 0:
            raise TrainError(
                f"losses.attention_row_weights is {match.row_weights!r}, but what layer {pair.student} of the student "
                f"is compared with gives each row of {len(chosen)} samples the weight 0; choose other "
                "layers, or set it to 'none'"
            )
        tensors[f"{pair.student}.{_WEIGHT}"] = weight.cpu()
        if mean_map is not None:
            tensors[f"{pair.student}.{_MAP}"] = mean_map.cpu().contiguous()
    with writing(path):
        save_tensors(tensors, path)


def _read(path: Path, match: AttentionMatch) -> list[RowReference]:
    try:
        with open_tensors(path) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return [
            RowReference(match.row_weights, found[f"{pair.student}.{_WEIGHT}"], found.get(f"{pair.student}.{_MAP}"))
            for pair in match.pairs
        ]
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, KeyError) as error:
        raise TrainError(f"{path}: damaged ({error}); remove it, and run the same command again") from error


@torch.no_grad()
def _batches(plan: RunPlan, student: DistilledStudent, positions: NDArray[np.int64]) -> Iterator[TrainBatch]:
    """Batches with the teacher's attention on the device."""
    lookup, device = stem_lookup(plan.reader, plan.config), plan.ranks.device
    # taken to be of equal length: they are few, and their order stays
    lengths = np.full(len(positions), plan.samples.lengths[positions].max())
    parts = Division(positions, lengths, plan.config.micro_batch_limit, world_size=1).of_rank(0)
    for part in tqdm(parts, desc="row weights", unit="batch", leave=False, disable=not sys.stderr.isatty()):
        batch = load_batch(
            plan.samples,
            part,
            targets=["attention"],
            stem=lookup,
            attention=chosen_attention(plan.reader, plan.attention),
        ).to(device)
        if student.stem is not None:
            sequences = batch.sequences
            images = student.model.encode_images(sequences.images, sequences.image_samples_I.tolist(), features=True)
            batch = student.stem.fill(batch, images.features)
        yield batch


def _measured(
    student: DistilledStudent, match: AttentionMatch, place: int, batches: list[TrainBatch]
) -> tuple[Tensor, Tensor | None]:
    """The mean weight of a row, a scalar, and the mean map [H, C] of renormalised rows that `surprise` needs."""
    rows = [_rows(student, match, place, batch) for batch in batches if batch.attention is not None]
    count = sum(float(real_Br.sum()) for _, real_Br, _ in rows)
    if not count:
        return torch.zeros(()), None
    mean_map = None
    if match.row_weights == "surprise":
        sums = [(renormalised(values) * real[:, None, :, None]).sum((0, 2)) for values, real, _ in rows]
        total_HC = torch.stack(sums).sum(0)
        mean_map = total_HC / total_HC.sum(-1, keepdim=True)
    weights = [
        (row_weights(match.row_weights, values, cols, mean_map) * real[:, None]).sum() / values.shape[1]
        for values, real, cols in rows
    ]
    return torch.stack(weights).sum() / count, mean_map


def _rows(
    student: DistilledStudent, match: AttentionMatch, place: int, batch: TrainBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that are weighed [B, H, R, C], which of them are real [B, R], and the columns of each sample."""
    targets = batch.attention
    assert targets is not None
    heads = head_weights(student.adapters, student.fixed_heads, match, place)
    pair = RowsOfPair(targets=targets, teacher=match.pairs[place].teacher, heads=heads, form=match.form)
    values_BHRC = pair.weighed_rows(slice(0, targets.stored_BRHC.shape[1]))
    return values_BHRC, length_mask(targets.rows_B, values_BHRC.shape[2], values_BHRC), targets.cols_B
