"""The manifest of a store: models, settings and data that decide its targets."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import torch

from alignkd.storage.schema.manifest import Manifest, Shapes
from alignkd.storage.schema.read_from import ImageFolder, ReadFrom, absolute
from alignkd.storage.schema.targets.sequence import SEQUENCE_TARGET, has_sequence_logprob
from alignkd.teacher_dump.data_parts import DataParts
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.attention.focus import VISION_TOP_TOKENS
from alignkd.vlm.families.family import Checkpoint, ModelConfig
from alignkd.vlm.inputs.examples import Preparation

# Raise it when the same teacher and data would give other targets.
CAPTURE_VERSION = "4"


def make_manifest(
    job: DumpJob,
    teacher: Checkpoint,
    preparation: Preparation,
    data: DataParts,
    attachments: Mapping[str, bytes],
    stored: Manifest | None = None,
    images: Sequence[ImageFolder] = (),
) -> Manifest:
    """The manifest of the store that `job` writes; one that exists (`stored`) is continued with what it has.

    A store of an earlier version without `sequence_logprob` stays without it.

    Args:
        images: the folders of the images.
    """
    config = teacher.config
    manifest = manifest_of(
        job.teacher,
        job.store,
        config,
        checkpoint={
            **preparation.fingerprint,
            "tokenizer_probe": json.dumps(preparation.probe()),
            "weights": teacher.fingerprint,
            **teacher.settings_fingerprint,
        },
        data={**data.fingerprint, "max_tokens": str(job.max_tokens)},
        attachments={name: hashlib.sha256(content).hexdigest() for name, content in attachments.items()},
        num_samples=data.fields["num_samples"],
        num_tokens=min(preparation.num_tokens, config.vocab_size) if config.pads_vocabulary else None,
        created_with={"torch": torch.__version__, "transformers": version("transformers")},
    )
    more = manifest.more
    if stored is not None and not has_sequence_logprob(stored):
        more = tuple(target for target in more if target != SEQUENCE_TARGET)
    return manifest.changed(**data.fields, more=more, read_from=_read_from(job, teacher, images))


def _read_from(job: DumpJob, teacher: Checkpoint, images: Sequence[ImageFolder]) -> ReadFrom:
    """Where the dump finds its inputs; a store that holds the images needs no folder."""
    vision_config, processor = job.teacher.vision_config, job.teacher.processor
    return ReadFrom(
        checkpoint=absolute(teacher.folder),
        vision_config=None if vision_config is None else absolute(vision_config),
        processor=None if processor == "auto" else processor,
        images=tuple(images) if job.store.inputs == "reference" else (),
    )


def manifest_of(
    teacher: TeacherConfig,
    store: StoreConfig,
    config: ModelConfig,
    *,
    checkpoint: Mapping[str, str],
    data: Mapping[str, str],
    attachments: Mapping[str, str],
    num_samples: int,
    num_tokens: int | None = None,
    created_with: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of a dump, given the hashes of what it reads; a plan gives hashes of the right length.

    Args:
        config: configuration of the teacher's model.
        checkpoint: fingerprint entries of the teacher's files and template.
        data: fingerprint entries of the data set.
        attachments: name -> sha256 of each attached file.
        num_tokens: columns of the head that are tokens, if the others are padding; None: all columns.
        created_with: versions of libraries, which identify nothing.

    Raises:
        InputError: see `StoreConfig.further_targets`.
    """
    return Manifest(
        fingerprint={**checkpoint, "dtype": teacher.precision, "capture": CAPTURE_VERSION, **_second_pass(store)},
        data_fingerprint=dict(data),
        shapes=Shapes(
            num_heads=config.num_heads,
            hidden_size=config.hidden_size,
            vision_tokens=config.vision_tokens,
            vocab_size=config.vocab_size,
            num_tokens=num_tokens,
            vision_top_tokens=min(VISION_TOP_TOKENS, config.vision_tokens or VISION_TOP_TOKENS),
            attention_layer=config.attention_layer,
        ),
        codecs=store.codecs(),
        more=(*store.further_targets(config), SEQUENCE_TARGET),
        backend=store.backend,
        inputs=store.inputs or "reference",
        attachments=dict(attachments),
        num_samples=num_samples,
        shard_size=store.shard_size,
        seed=store.seed,
        created_with=dict(created_with or {}),
    )


def _second_pass(store: StoreConfig) -> dict[str, str]:
    return {} if store.counterfactual is None else {"counterfactual": store.counterfactual.fingerprint()}
