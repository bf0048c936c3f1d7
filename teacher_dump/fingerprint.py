"""What decided a store's targets, written into its manifest: models, settings and data."""

import hashlib
import json
from collections.abc import Mapping

import torch
import transformers

from alignkd.storage.schema.manifest import Manifest, Shapes
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.data.conversations import ConversationFile
from alignkd.vlm.inputs.examples import ExampleBuilder
from alignkd.vlm.model.config import VLMConfig
from alignkd.vlm.model.focus import FOCUS_TOKENS
from alignkd.vlm.weights.checkpoint import weights_fingerprint
from alignkd.vlm.weights.tower_hash import settings_fingerprint

# Raise it when the same teacher and data would give other targets.
CAPTURE_VERSION = "4"


def make_manifest(
    job: DumpJob,
    config: VLMConfig,
    builder: ExampleBuilder,
    samples: ConversationFile,
    attachments: Mapping[str, bytes],
) -> Manifest:
    """The manifest of the store that `job` writes."""
    return Manifest(
        fingerprint={
            **builder.fingerprint,
            "tokenizer_probe": json.dumps(builder.tokenizer.probe_ids()),
            "weights": weights_fingerprint(job.teacher.checkpoint),
            "vision_config": settings_fingerprint(config),
            "dtype": job.teacher.precision,
            "capture": CAPTURE_VERSION,
        },
        data_fingerprint={
            "conversations": samples.sha256,
            "max_tokens": str(job.max_tokens),
        },
        shapes=Shapes(
            num_heads=config.num_heads,
            hidden_size=config.hidden_size,
            vision_tokens=config.vision_tokens,
            vocab_size=config.vocab_size,
            vision_top_tokens=min(FOCUS_TOKENS, config.vision_tokens),
        ),
        codecs=job.store.codecs(),
        backend=job.store.backend,
        inputs=job.store.inputs,
        attachments={name: hashlib.sha256(content).hexdigest() for name, content in attachments.items()},
        num_samples=len(samples),
        shard_size=job.store.shard_size,
        seed=job.store.seed,
        created_with={"torch": torch.__version__, "transformers": transformers.__version__},
    )
