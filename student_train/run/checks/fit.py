"""Checks before the first step: store, student and settings must fit together."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader, check_fingerprint
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE, stores_advantage
from alignkd.student_train.data.samples.dataset import dumped_images
from alignkd.student_train.data.samples.lengths import same_vision_tokens, sequence_lengths
from alignkd.student_train.data.samples.sources import sources_of
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.settings import MATCHED, LossConfig
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.inputs.examples import Preparation


def check_store_fits(reader: StoreReader, preparation: Preparation, student: ModelConfig, losses: LossConfig) -> None:
    """Refuse a store made for another student, or with logits that `losses` cannot use.

    Raises:
        InputError: the student's tokenizer gives other ids for a probe text than the teacher's.
        StoreError: tokenizer, template or image pre-processing differ.
        TrainError: vocabulary, sample length, layers or logits do not fit.
    """
    if (probe := reader.manifest.fingerprint.get("tokenizer_probe")) is not None:
        same = same_vision_tokens(reader, preparation)
        preparation.check_probe(json.loads(probe), f"the store {reader.path}", image_tokens=same)
    _check_vision_tokens(reader, preparation, losses)
    check_relations(student, losses)
    _check_fingerprint(reader, preparation, losses)
    _check_sizes(reader, preparation, student)
    logits = reader.manifest.codecs.logits
    if problems := losses.problems_with(logits.kind, f"store {reader.path}", logits.tail):
        raise TrainError("; ".join(problems))
    if losses.logit_groups is not None and not stores_advantage(reader.manifest):
        raise TrainError(
            f"losses.logit_groups is {losses.logit_groups!r}, but store {reader.path} keeps no {ADVANTAGE}; leave "
            "logit_groups out, or dump with store.counterfactual"
        )


def check_images(reader: StoreReader, images: Path | None, images_of: Mapping[str, Path | None]) -> None:
    """Refuse a run without an image folder if the store only refers to its images.

    Args:
        images: folder of all images; None: where the dump found them.
        images_of: folder by name of a source, in place of `images`.

    Raises:
        TrainError: the message names the setting, and the folder of the dump if it is not there.
    """
    if reader.manifest.inputs != "reference":
        return
    names, of_record = sources_of(reader)
    for number, name in enumerate(names):
        if images_of.get(name, images) is not None:
            continue
        indices = reader.dataset_index[(of_record == number) & reader.has_image]
        folders = {dumped_images(reader, index) for index in _one_of_each_folder(reader, indices)}
        if missing := [folder for folder in folders if folder is None or not os.path.isdir(folder)]:  # noqa: PTH112 - False also without permission
            source = f", source {name}," if len(names) > 1 else ""
            gone = "" if missing[0] is None else f" and {missing[0]}, where the dump found them, is not a folder"
            raise TrainError(
                f"store {reader.path}{source} has inputs 'reference', so its images are read from a folder, but "
                f"data.images is missing{gone}; set it, or dump with inputs 'embed'"
            )


def _one_of_each_folder(reader: StoreReader, indices: NDArray[np.int64]) -> list[int]:
    """One of these samples for each folder of images that the manifest lists, and one that comes before all of them."""
    read_from = reader.manifest.read_from
    firsts = [] if read_from is None else [entry.first_sample for entry in read_from.images]
    _, chosen = np.unique(np.searchsorted(firsts, indices, side="right"), return_index=True)
    return [int(index) for index in indices[chosen]]


def compared_tokens(reader: StoreReader, student: ModelConfig) -> int | None:
    """The first columns that the logit loss compares: the tokenizer's entries; None: all columns.

    Models have more columns than their tokenizer has entries, and not all models of a family have equally many.
    """
    shapes = reader.manifest.shapes
    entries = shapes.vocab_size if shapes.num_tokens is None else shapes.num_tokens
    return None if entries == shapes.vocab_size == student.vocab_size else entries


def _check_vision_tokens(reader: StoreReader, preparation: Preparation, losses: LossConfig) -> None:
    """An image must become as many tokens as for the teacher if a term compares them one by one."""
    if same_vision_tokens(reader, preparation):
        return
    weighed = [name for name in losses.weights if TERMS[name].positional]
    if losses.vision_matching == "hungarian":
        _check_known_vision_tokens(reader, preparation)
        weighed = [name for name in weighed if name not in MATCHED]
    if weighed:
        names = ", ".join(f"losses.{term}" for term in weighed)
        known = None not in (reader.manifest.shapes.vision_tokens, preparation.vision_tokens)
        match = ", set losses.vision_matching to hungarian" if known and {*weighed} <= {*MATCHED} else ""
        raise TrainError(
            f"store {reader.path}: {_vision_tokens(reader, preparation)}, so {names} have nothing to compare; set "
            f"them to 0 (supervised and logit losses remain){match}, or take a student "
            f"{_like_the_teacher(preparation)}"
        )


def _check_known_vision_tokens(reader: StoreReader, preparation: Preparation) -> None:
    """Unequal numbers are matched if both are the same for every image: the number of pairs is then known in advance.

    Raises:
        TrainError: one of them depends on the image.
    """
    if None in (reader.manifest.shapes.vision_tokens, preparation.vision_tokens):
        raise TrainError(
            f"store {reader.path}: {_vision_tokens(reader, preparation)}, so losses.vision_matching 'hungarian' cannot "
            f"know how many pairs there are; take a student {_like_the_teacher(preparation)}, or set losses.vsd and "
            "losses.vlad to 0 and leave losses.vision_matching out"
        )


def check_relations(student: ModelConfig, losses: LossConfig) -> None:
    """The student must have the layer that is compared, and pairs of vision tokens.

    Raises:
        TrainError: it has not, and the loss `relation` has a weight.
    """
    if "relation" not in losses.weights:
        return
    layer = losses.relations_layer
    if layer is not None and layer >= student.num_layers:
        raise TrainError(
            f"losses.relations_layer is {layer}, but the student has {student.num_layers} decoder layers, 0 to "
            f"{student.num_layers - 1}; choose one of them"
        )
    if student.vision_tokens == 1:
        raise TrainError(
            f"losses.relation is {losses.weights['relation']}, but an image is one vision token of this student, so "
            "there is no pair; set it to 0"
        )


def _check_fingerprint(reader: StoreReader, preparation: Preparation, losses: LossConfig) -> None:
    """Tokens and pixels must be the teacher's; without terms on vision tokens their number may be another."""
    own = preparation.fingerprint
    free = set() if same_vision_tokens(reader, preparation) else {"vision_tokens"}
    if preparation.vision_tokens is None and not any(TERMS[name].positional for name in losses.weights):
        free.add("image_processor")  # it also decides the tokens of an image; no term compares its pixels
    if free:
        own = {name: value for name, value in own.items() if name not in free}
    check_fingerprint(reader, own)


def _vision_tokens(reader: StoreReader, preparation: Preparation) -> str:
    """Both sides' number of vision tokens, or what decides it."""
    stored, own = reader.manifest.shapes.vision_tokens, preparation.vision_tokens
    if stored is not None and own is not None:
        return f"an image is {stored} tokens in the store, {own} in the student"
    deciding = (
        reader.manifest.fingerprint.get("vision_tokens", "not recorded"),
        preparation.fingerprint["vision_tokens"],
    )
    values = [
        f"as {text}" if count is None else str(count) for count, text in zip((stored, own), deciding, strict=True)
    ]
    return f"the tokens of an image are {values[0]} in the store, {values[1]} in the student"


def _like_the_teacher(preparation: Preparation) -> str:
    if preparation.vision_tokens is None:
        return "whose processor makes as many tokens of an image as the teacher's"
    return "with the teacher's projector type"


def _check_sizes(reader: StoreReader, preparation: Preparation, student: ModelConfig) -> None:
    if not len(reader):
        raise TrainError(
            f"store {reader.path} holds 0 samples, all {len(reader.quarantined)} were unusable; `alignkd shards ls "
            f"{reader.path} --unusable` lists the reasons"
        )
    _check_vocabulary(reader, preparation, student)
    longest = int(sequence_lengths(reader, preparation.vision_tokens).max())
    if preparation.max_tokens is not None and longest > preparation.max_tokens:
        raise TrainError(
            f"store {reader.path}: its longest sample has {longest} tokens, max_tokens is {preparation.max_tokens}; "
            "raise max_tokens or dump again with it"
        )


def _check_vocabulary(reader: StoreReader, preparation: Preparation, student: ModelConfig) -> None:
    """The same entries; where the tokenizers have equally many, the heads may have further columns, unequally many."""
    shapes = reader.manifest.shapes
    if shapes.vocab_size == student.vocab_size and shapes.num_tokens in (None, preparation.num_tokens):
        return
    entries = shapes.vocab_size if shapes.num_tokens is None else shapes.num_tokens
    if not student.pads_vocabulary or entries != preparation.num_tokens:
        sizes = f"the teacher's vocab_size is {shapes.vocab_size}, the student's {student.vocab_size}"
        if shapes.num_tokens is not None:
            sizes = f"the teacher's tokenizer has {entries} entries, the student's {preparation.num_tokens}"
        raise TrainError(f"store {reader.path}: {sizes}; teacher and student must share a vocabulary")
    if student.vocab_size < entries:
        raise TrainError(
            f"store {reader.path}: the tokenizer has {entries} entries, the student's head only {student.vocab_size} "
            "columns; take a student that was trained with this tokenizer"
        )
