"""The identity of a sample's input, by content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def sample_key(conversations: Sequence[Mapping[str, Any]], image_sha256: Sequence[str], template: str) -> str:
    """Content hash (64 hex digits) of all that decides a sample's input: conversation, image bytes, template.

    Args:
        conversations: turns as `Sample.conversations` gives them.
        image_sha256: sha256 of each image file, in order.
        template: fingerprint of the prompt template.
    """
    # keys of samples with one image are older than lists of images
    hashes = list(image_sha256) if len(image_sha256) > 1 else image_sha256[0] if image_sha256 else None
    content = [list(conversations), hashes, template]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
