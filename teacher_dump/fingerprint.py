"""The manifest of a store: models, settings and data that decide its targets."""

import hashlib
import json
from collections.abc import Mapping

import torch
import transformers

from alignkd.storage.schema.manifest import Manifest, Shapes
from alignkd.teacher_dump.config import TeacherConfig
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.vlm.attention.focus import VISION_TOP_TOKENS
from alignkd.vlm.data.conversations import ConversationFile
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.tower_settings import settings_fingerprint
from alignkd.vlm.inputs.examples import Preparation

# Raise it when the same teacher and data would give other targets.
CAPTURE_VERSION = "4"


def make_manifest(
    job: DumpJob,
    teacher: Checkpoint,
    builder: Preparation,
    samples: ConversationFile,
    attachments: Mapping[str, bytes],
) -> Manifest:
    """The manifest of the store that `job` writes."""
    return manifest_of(
        job.teacher,
        job.store,
        teacher.config,
        checkpoint={
            **builder.fingerprint,
            "tokenizer_probe": json.dumps(builder.tokenizer.probe_ids()),
            "weights": teacher.fingerprint,
            "vision_config": settings_fingerprint(teacher.config),
        },
        data={"conversations": samples.sha256, "max_tokens": str(job.max_tokens)},
        attachments={name: hashlib.sha256(content).hexdigest() for name, content in attachments.items()},
        num_samples=len(samples),
        created_with={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def manifest_of(
    teacher: TeacherConfig,
    store: StoreConfig,
    config: VLMConfig,
    *,
    checkpoint: Mapping[str, str],
    data: Mapping[str, str],
    attachments: Mapping[str, str],
    num_samples: int,
    created_with: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of a dump, given the hashes of what it reads; a plan gives hashes of the right length.

    Args:
        config: configuration of the teacher's model.
        checkpoint: fingerprint entries of the teacher's files and template.
        data: fingerprint entries of the data set.
        attachments: name -> sha256 of each attached file.
        created_with: versions of libraries, which identify nothing.
    """
    return Manifest(
        fingerprint={**checkpoint, "dtype": teacher.precision, "capture": CAPTURE_VERSION},
        data_fingerprint=dict(data),
        shapes=Shapes(
            num_heads=config.num_heads,
            hidden_size=config.hidden_size,
            vision_tokens=config.vision_tokens,
            vocab_size=config.vocab_size,
            vision_top_tokens=min(VISION_TOP_TOKENS, config.vision_tokens),
        ),
        codecs=store.codecs(),
        backend=store.backend,
        inputs=store.inputs,
        attachments=dict(attachments),
        num_samples=num_samples,
        shard_size=store.shard_size,
        seed=store.seed,
        created_with=dict(created_with or {}),
    )
