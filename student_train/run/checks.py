"""Checks before the first step: store, student and settings must fit together."""

import json
from pathlib import Path

from alignkd.storage import StoreReader, check_fingerprint
from alignkd.student_train.data.lengths import same_vision_tokens, sequence_lengths
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.inputs.examples import Preparation


def check_store_fits(reader: StoreReader, builder: Preparation, student: VLMConfig, losses: LossConfig) -> None:
    """Refuse a store made for another student, or with logits that `losses` cannot use.

    Raises:
        InputError: the student's tokenizer gives other ids for a probe text than the teacher's.
        StoreError: tokenizer, template or image pre-processing differ.
        TrainError: vocabulary, sample length or logits do not fit.
    """
    if (probe := reader.manifest.fingerprint.get("tokenizer_probe")) is not None:
        builder.tokenizer.check_probe(json.loads(probe), f"the store {reader.path}")
    _check_fingerprint(reader, builder, losses)
    _check_sizes(reader, builder, student)
    if problems := losses.problems_with(reader.manifest.codecs.logits.kind, f"store {reader.path}"):
        raise TrainError("; ".join(problems))


def check_images(reader: StoreReader, images: Path | None) -> None:
    """Refuse a run without an image folder if the store only refers to its images.

    Raises:
        TrainError: the message names both settings.
    """
    if images is None and reader.manifest.inputs == "reference" and reader.has_image.any():
        raise TrainError(
            f"store {reader.path} has inputs 'reference', so its images are read from a folder, but data.images is "
            "missing; set it, or dump with inputs 'embed'"
        )


def _check_fingerprint(reader: StoreReader, builder: Preparation, losses: LossConfig) -> None:
    """Tokens and pixels must be the teacher's; the number of vision tokens only if a term compares them one by one."""
    own = builder.fingerprint
    if not same_vision_tokens(reader, builder.vision_tokens):
        if weighed := [name for name in losses.weights if TERMS[name].positional]:
            names = ", ".join(f"losses.{term}" for term in weighed)
            raise TrainError(
                f"store {reader.path}: an image is {reader.manifest.shapes.vision_tokens} tokens in the store, "
                f"{builder.vision_tokens} in the student, so {names} have nothing to compare; set them to 0 "
                "(supervised and logit losses remain), or take a student with the teacher's projector type"
            )
        own = {name: value for name, value in own.items() if name != "vision_tokens"}
    check_fingerprint(reader, own)


def _check_sizes(reader: StoreReader, builder: Preparation, student: VLMConfig) -> None:
    if not len(reader):
        raise TrainError(
            f"store {reader.path} holds 0 samples, all {len(reader.quarantined)} were unusable; `alignkd shards ls "
            f"{reader.path} --unusable` lists the reasons"
        )
    if (found := reader.manifest.shapes.vocab_size) != student.vocab_size:
        raise TrainError(
            f"store {reader.path}: the teacher's vocab_size is {found}, the student's {student.vocab_size}; "
            "teacher and student must share a vocabulary"
        )
    longest = int(sequence_lengths(reader, builder.vision_tokens).max())
    if builder.max_tokens is not None and longest > builder.max_tokens:
        raise TrainError(
            f"store {reader.path}: its longest sample has {longest} tokens, max_tokens is {builder.max_tokens}; "
            "raise max_tokens or dump again with it"
        )
