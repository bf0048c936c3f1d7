"""What decided a store's targets, written into its manifest: models, settings and data."""

import hashlib
from pathlib import Path

import torch
import transformers

from storage.manifest import Codecs, LogitsCodec, Manifest, Shapes
from teacher_dump.config import StoreConfig
from teacher_dump.focus import FOCUS_TOKENS
from teacher_dump.job import DumpJob
from vlm.checkpoint import weights_fingerprint
from vlm.config import VLMConfig
from vlm.examples import ExampleBuilder

# Raise it when the same teacher and data would give other targets.
CAPTURE_VERSION = "1"


def make_manifest(job: DumpJob, config: VLMConfig, builder: ExampleBuilder, num_samples: int) -> Manifest:
    """The manifest of the store that `job` writes."""
    return Manifest(
        fingerprint={
            **builder.fingerprint,
            "weights": weights_fingerprint(job.teacher.checkpoint),
            "vision_config": hashlib.sha256(config.vision.to_json_string().encode()).hexdigest(),
            "dtype": job.teacher.dtype,
            "capture": CAPTURE_VERSION,
        },
        data_fingerprint={
            "conversations": file_sha256(job.conversations),
            "max_tokens": str(job.max_tokens),
        },
        shapes=Shapes(
            num_heads=config.num_heads,
            hidden_size=config.hidden_size,
            vision_tokens=config.vision_tokens,
            vocab_size=config.vocab_size,
            vision_top_tokens=min(FOCUS_TOKENS, config.vision_tokens),
        ),
        codecs=make_codecs(job.store),
        backend=job.store.backend,
        num_samples=num_samples,
        shard_size=job.store.shard_size,
        seed=job.store.seed,
        created_with={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def make_codecs(store: StoreConfig) -> Codecs:
    """The codecs of the configuration, as the manifest records them."""
    logits = store.logits
    return Codecs(
        attention=store.attention,
        attention_pairs=store.attention_pairs,
        vision_top=store.vision_top,
        vision_all=store.vision_all,
        logits=LogitsCodec(kind=logits.kind, top_k=logits.kept_entries, dtype=logits.stored_dtype),
    )


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
