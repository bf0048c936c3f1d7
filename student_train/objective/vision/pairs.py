"""Which vision tokens of a micro-batch are compared, where they are matched by their logits (`vision_matching`).

Shapes: P vision tokens of all images of the batch, student's or teacher's; M pairs; S samples with images; R the most
pairs of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.student_train.data.handoff.block import in_one_copy
from alignkd.student_train.losses.vision.matching import cheapest_pairs, state_distances
from alignkd.vlm.families.family import Head
from alignkd.vlm.inputs.batch import SequenceBatch, pad_positions


@dataclass(frozen=True, kw_only=True)
class VisionPairs:
    """Pairs of vision tokens, one to one within each image, in rising order of the student's.

    Attributes:
        student_M: int64, among the student's P vision tokens.
        teacher_M: int64, among the teacher's.
        student_SR: int64, among the student's vision tokens of the sample; 0 where padded.
        teacher_SR: int64, among the teacher's vision tokens of the sample; 0 where padded.
        lengths_S: int64, pairs of each sample.
        num_S: the same as plain integers.
    """

    student_M: Tensor
    teacher_M: Tensor
    student_SR: Tensor
    teacher_SR: Tensor
    lengths_S: Tensor
    num_S: tuple[int, ...]

    @classmethod
    def of_images(
        cls, pairs: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], tokens: "TokensOfImages"
    ) -> "VisionPairs":
        """Join the pairs of each image, which count its own tokens, on the host."""
        of_batch = [
            (student + tokens.student_starts[image], teacher + tokens.teacher_starts[image])
            for image, (student, teacher) in enumerate(pairs)
        ]
        student_M, teacher_M = (np.concatenate([pair[side] for pair in of_batch]) for side in (0, 1))
        of_samples: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for images in tokens.images_of_samples:
            own = of_batch[images]
            firsts = tokens.student_starts[images.start], tokens.teacher_starts[images.start]
            student, teacher = (np.concatenate([pair[side] for pair in own]) - firsts[side] for side in (0, 1))
            of_samples.append((student, teacher))
        num_S = tuple(len(student) for student, _ in of_samples)
        return cls(
            student_M=torch.from_numpy(student_M),
            teacher_M=torch.from_numpy(teacher_M),
            student_SR=pad_positions([student.astype(np.int32) for student, _ in of_samples])[0],
            teacher_SR=pad_positions([teacher.astype(np.int32) for _, teacher in of_samples])[0],
            lengths_S=torch.tensor(num_S),
            num_S=num_S,
        )


@dataclass(frozen=True, kw_only=True)
class TokensOfImages:
    """Where the vision tokens of each image of a batch are among all of them.

    Attributes:
        student_starts, teacher_starts: first token of each image, and the end of the last.
        images_of_samples: the images of each sample that has any.
    """

    student_starts: tuple[int, ...]
    teacher_starts: tuple[int, ...]
    images_of_samples: tuple[slice, ...]

    @classmethod
    def of(cls, sequences: SequenceBatch, teacher_tokens: Sequence[int]) -> "TokensOfImages":
        """Of a batch with images; `teacher_tokens`: the teacher's vision tokens of each of them."""
        assert len(teacher_tokens) == len(sequences.tokens_of_image), (teacher_tokens, sequences.tokens_of_image)
        samples = sequences.image_samples_I.tolist()  # on the host
        borders = [image for image in range(len(samples)) if image == 0 or samples[image] != samples[image - 1]]
        return cls(
            student_starts=tuple(accumulate(sequences.tokens_of_image, initial=0)),
            teacher_starts=tuple(accumulate(teacher_tokens, initial=0)),
            images_of_samples=tuple(slice(first, end) for first, end in pairwise([*borders, len(samples)])),
        )


@torch.no_grad()
def match_vision_tokens(
    student_PD: Tensor,
    student_head: Head,
    teacher_PD: Tensor,
    teacher_head: Head,
    tokens: TokensOfImages,
    *,
    num_tokens: int | None,
    chunk_bytes: int,
) -> VisionPairs:
    """The cheapest pairs of each image, on the device of the states.

    The host waits once, for the distances of all images, and finds the pairs meanwhile the device has nothing to do.

    Args:
        student_PD, teacher_PD: last hidden states at the vision tokens, image by image, in the dtypes of the heads.
        num_tokens, chunk_bytes: see `state_distances`.
    """
    distances = [
        state_distances(
            student_PD[own[0] : own[1]],
            student_head,
            teacher_PD[theirs[0] : theirs[1]],
            teacher_head,
            num_tokens=num_tokens,
            chunk_bytes=chunk_bytes,
        )
        for own, theirs in zip(pairwise(tokens.student_starts), pairwise(tokens.teacher_starts), strict=True)
    ]
    shapes = [distance.shape for distance in distances]
    on_host = torch.cat([distance.flatten() for distance in distances]).cpu()
    split = on_host.split([shape.numel() for shape in shapes])
    pairs = [cheapest_pairs(values.view(shape).numpy()) for values, shape in zip(split, shapes, strict=True)]
    return in_one_copy(VisionPairs.of_images(pairs, tokens), student_PD.device)
