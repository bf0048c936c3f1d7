"""The manifest of a store of imported targets: what decides its tokens, and where the targets come from."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from alignkd.storage.codecs.settings import NONE, Codecs, LogitsCodec
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.schema.manifest import Manifest, Shapes
from alignkd.storage.schema.read_from import ReadFrom, image_folders
from alignkd.teacher_dump.imported.formats.registry import Alignment, Format, Match
from alignkd.teacher_dump.imported.job import ImportJob
from alignkd.vlm.attention.focus import VISION_TOP_TOKENS
from alignkd.vlm.data.source import DataSource
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.inputs.examples import Preparation

# Raise it when the same files and data would give other targets.
IMPORT_VERSION = "1"
IMPORTED = "imported"


def import_manifest(
    job: ImportJob,
    checkpoint: Checkpoint,
    preparation: Preparation,
    samples: DataSource,
    *,
    format: Format,
    match: Match,
    alignment: Alignment,
    logits: LogitsCodec,
    files: str,
    attachments: Mapping[str, bytes],
) -> Manifest:
    """The manifest of the store that `job` writes; it has no hash of weights, because no teacher ran.

    Args:
        files: sha256 of the imported files. It belongs to the data, so that imports of several files can be merged.
    """
    config = checkpoint.config
    source = {"format": format.name, "alignment": alignment, "temperature": job.temperature}
    return Manifest(
        fingerprint={
            **preparation.fingerprint,
            "tokenizer_probe": json.dumps(preparation.probe()),
            IMPORTED: f"{format.name} {json.dumps(source, sort_keys=True)}",
            "import": IMPORT_VERSION,
        },
        data_fingerprint={
            "conversations": _data_sha256(job, samples),
            "max_tokens": str(job.max_tokens),
            "imported_files": files,
            "imported_match": match,
        },
        shapes=Shapes(
            num_heads=config.num_heads,
            hidden_size=config.hidden_size,
            vision_tokens=config.vision_tokens,
            vocab_size=config.vocab_size,
            num_tokens=min(preparation.num_tokens, config.vocab_size) if config.pads_vocabulary else None,
            vision_top_tokens=min(VISION_TOP_TOKENS, config.vision_tokens or VISION_TOP_TOKENS),
            attention_layer=config.attention_layer,
        ),
        codecs=Codecs(attention=NONE, vision_top=NONE, vision_all=NONE, logits=logits),
        backend=job.backend,
        inputs=job.inputs,
        attachments={name: hashlib.sha256(content).hexdigest() for name, content in attachments.items()},
        num_samples=len(samples),
        shard_size=job.shard_size,
        seed=job.seed,
        read_from=ReadFrom(images=image_folders([(0, job.data.images)]) if job.inputs == "reference" else ()),
        created_with={"torch": torch.__version__, "transformers": version("transformers")},
    )


def _data_sha256(job: ImportJob, samples: DataSource) -> str:
    """sha256 of the data file, as a dump records it; of several files that of their hashes."""
    path = Path(job.data.path)
    if path.is_file():
        return file_sha256(path)
    return hashlib.sha256(json.dumps([piece.sha256 for piece in samples.pieces]).encode()).hexdigest()
