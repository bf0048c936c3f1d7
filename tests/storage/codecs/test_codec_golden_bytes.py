"""The bytes of every codec are pinned: what was stored once must decode to the same values for ever.

tests/golden/codecs/NAME.json holds values (float32, hex), each stored part and the decoded values. If this fails, a
store written before would be read as something else: that needs a new schema version (`SCHEMA_VERSION` in
storage/schema/manifest.py), under which the old bytes are still decoded in the old way. The files are written anew by
`python tests/storage/codecs/test_codec_golden_bytes.py` from the repository's root.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import EncodedArray, SampledLogits, TruncatedLogits
from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts
from alignkd.storage.logits.sampled import SampledLogitsCodec
from alignkd.storage.logits.truncated import TruncatedLogitsCodec

GOLDEN = Path(__file__).parents[2] / "golden" / "codecs"
ADVICE = "stored bytes changed: this needs a new schema version (see the head of this file)"
SMALL = [0.0, 2.0**-149, 2.0**-30, 2.0**-24, 2.0**-14, 1e-3, 1 / 3, 0.5, 1.0]


def values_of(codec: str) -> np.ndarray:
    """[3, 70]: small numbers, a ramp, and (but for probabilities) both signs and (but for cosines) large ones."""
    ramp = np.arange(70 * 3).reshape(3, 70) / 210
    ramp[0, : len(SMALL)] = SMALL
    if codec == "int8_unit":
        ramp[1, ::2] *= -1
    elif codec != "sqrt_u8":
        ramp[1, ::2] *= -5
        ramp[2, ::7] *= 1000
    return ramp.astype(np.float32)


ARRAY_CODECS = ("float32", "float16", "bfloat16", "sqrt_u8", "int8_channel", "int8_group", "int8_unit")


@pytest.mark.parametrize("name", ARRAY_CODECS)
def test_bytes_of_a_codec_are_pinned(name: str) -> None:
    pinned = json.loads((GOLDEN / f"{name}.json").read_text())
    values = from_json(pinned["values"])
    assert as_json(get_codec(name).encode(values)) == pinned["parts"], ADVICE
    parts = {part: from_json(stored) for part, stored in pinned["parts"].items()}
    assert EncodedArray(name, parts).decode().tobytes().hex() == pinned["decoded"]["hex"], ADVICE


LOGITS: dict[str, tuple[Any, Any]] = {
    "topk": (
        TruncatedLogitsCodec(vocab_size=50, max_entries=2, dtype="float16"),
        TruncatedLogits(
            ids=np.array([3, 49, 4], np.uint16),
            logprobs=np.array([-1, -2, -3], np.float32),
            offsets=np.array([0, 2, 3], np.int64),
            tail_logmass=np.array([-0.6867167, -0.0510692], np.float32),
        ),
    ),
    "sampled": (
        SampledLogitsCodec(70_000, 300),
        SampledLogits(
            ids=np.array([3, 69_999, 4], np.uint32),
            counts=np.array([299, 1, 300], np.uint16),
            offsets=np.array([0, 2, 3], np.int64),
            entropy=np.array([1.25, 0], np.float32),
        ),
    ),
}


@pytest.mark.parametrize("name", LOGITS)
def test_bytes_of_logits_are_pinned(name: str) -> None:
    codec, logits = LOGITS[name]
    pinned = json.loads((GOLDEN / f"{name}.json").read_text())
    assert as_json(codec.encode(logits)) == pinned, ADVICE
    found = codec.decode(lambda column: from_json(pinned[column]))
    for field, values in logits.__dict__.items():
        assert (getattr(found, field) == values).all(), ADVICE


def as_json(parts: Parts) -> dict[str, dict[str, Any]]:
    return {
        name: {"dtype": part.dtype.newbyteorder("<").str, "shape": list(part.shape), "hex": little(part).hex()}
        for name, part in parts.items()
    }


def little(part: np.ndarray) -> bytes:
    return part.astype(part.dtype.newbyteorder("<")).tobytes()


def from_json(stored: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(stored["hex"]), stored["dtype"]).reshape(stored["shape"])


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name in ARRAY_CODECS:
        values = values_of(name)
        parts = get_codec(name).encode(values)
        decoded = get_codec(name).decode(parts)
        document = {**as_json({"values": values, "decoded": decoded}), "parts": as_json(parts)}
        (GOLDEN / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for name, (codec, logits) in LOGITS.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(as_json(codec.encode(logits)), indent=1) + "\n")


if __name__ == "__main__":
    write()
    sys.stdout.write(f"wrote {GOLDEN}\n")
