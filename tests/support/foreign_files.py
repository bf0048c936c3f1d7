"""Writers of other tools' files, from the descriptions of their formats in docs/import.md."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A sequence that a teacher has scored.

    Attributes:
        id: the sample's id.
        tokens: ids of the whole sequence, S of them.
        logprobs: log-probabilities of the token AFTER each position over the whole vocabulary, float64 [S, V].
        first_label: place of the first supervised token.
    """

    id: str
    tokens: list[int]
    logprobs: NDArray[np.float64]
    first_label: int

    def top(self, place: int, k: int) -> list[int]:
        """The k most probable tokens after a position."""
        return np.argsort(-self.logprobs[place], kind="stable")[:k].tolist()


def vllm_prompt(scored: Scored, k: int) -> list[Any]:
    """`prompt_logprobs`: of each token, with the token itself beside the k most probable; null for the first."""
    found: list[Any] = [None]
    for place, token in enumerate(scored.tokens[1:]):
        row = scored.logprobs[place].astype(np.float32)
        ranks = {entry: rank for rank, entry in enumerate(scored.top(place, len(row)), 1)}
        ids = dict.fromkeys([token, *scored.top(place, k)])
        found.append({
            str(entry): {"logprob": float(row[entry]), "rank": ranks[entry], "decoded_token": f"<{entry}>"}
            for entry in ids
        })  # fmt: skip
    return found


def write_vllm(path: Path, samples: Sequence[Scored], k: int, form: str = "offline") -> Path:
    """A file of vLLM in one of its forms: `offline`, `completions`, `batch`, `split` or `no ids`."""
    entries = [_vllm_entry(scored, k, form) for scored in samples]
    text = json.dumps(entries) if path.suffix == ".json" else "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_text(text)
    return path


def _vllm_entry(scored: Scored, k: int, form: str) -> dict[str, Any]:
    prompt = vllm_prompt(scored, k)
    if form == "offline":  # one more token was generated, which is not a part of the sample
        answer = {"index": 0, "text": "x", "token_ids": [3], "logprobs": [{"3": {"logprob": -0.5, "rank": 1}}]}
        own = {"id": scored.id, "request_id": "7", "prompt_token_ids": scored.tokens, "prompt_logprobs": prompt}
        return {**own, "outputs": [answer]}
    if form == "completions":
        choice = {"index": 0, "text": "x", "prompt_token_ids": scored.tokens, "prompt_logprobs": prompt}
        return {"id": scored.id, "object": "text_completion", "choices": [{**choice, "logprobs": None}]}
    if form == "batch":
        body = {"id": "cmpl-1", "choices": [{"index": 0, "prompt_logprobs": prompt}]}
        body["choices"][0]["prompt_token_ids"] = scored.tokens
        return {"custom_id": scored.id, "error": None, "response": {"status_code": 200, "body": body}}
    if form == "split":  # the answer was generated: its distributions are in `logprobs`
        at = scored.first_label
        content = [
            {
                "token": f"token_id:{token}",
                "logprob": position[str(token)]["logprob"],
                "top_logprobs": [
                    {"token": f"token_id:{entry}", "logprob": value["logprob"]} for entry, value in position.items()
                ],
            }
            for token, position in zip(scored.tokens[at:], prompt[at:], strict=True)
        ]
        choice = {"index": 0, "message": {"role": "assistant"}, "logprobs": {"content": content}}
        return {"id": scored.id, "prompt_token_ids": scored.tokens[:at], "choices": [choice]}
    assert form == "no ids", form
    return {"id": scored.id, "prompt_logprobs": prompt}


def write_axolotl(path: Path, samples: Sequence[Scored], k: int, *, shift: int, ids: bool = True) -> Path:
    """Prepared rows of axolotl, renormalised over k entries: of each token in its own row (`shift` 0) or the row before
    (1)."""
    entries = []
    for scored in samples:
        S, rows = len(scored.tokens), []
        for row in range(S):
            place = row + shift - 1  # the distribution after this position
            if not 0 <= place < S - 1:
                rows.append(([0] * k, [-1e9] * k, [0] * k))
                continue
            top = scored.top(place, k)
            kept = scored.logprobs[place][top]
            rows.append((top, (kept - np.log(np.exp(kept).sum())).tolist(), [1] * k))
        ids_of, values, mask = (list(part) for part in zip(*rows, strict=True))
        entry = {"id": scored.id, "target_token_ids": ids_of, "target_logprobs": values, "target_mask": mask}
        entries.append({**entry, "input_ids": scored.tokens} if ids else entry)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(entries), path)
    else:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def write_axolotl_objects(path: Path, samples: Sequence[Scored], k: int) -> Path:
    """`logprobs` of objects of the answer alone, without ids of the sequence."""
    entries = []
    for scored in samples:
        prompt = vllm_prompt(scored, k)[scored.first_label :]
        rows = [
            [{"token": f"token_id:{token}", "logprob": value["logprob"]} for token, value in position.items()]
            for position in prompt
        ]
        entries.append({"id": scored.id, "messages": [], "llm_logprobs": rows})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def write_distillkit_plain(path: Path, samples: Sequence[Scored], k: int) -> Path:
    """DistillKit's uncompressed columns; the rows in another order than the data."""
    rows = []
    for scored in reversed(samples):
        tops = [scored.top(place, k) for place in range(len(scored.tokens) - 1)]
        values = [scored.logprobs[place][top].tolist() for place, top in enumerate(tops)]
        rows.append({"input_ids": scored.tokens, "token_ids": tops, "top_values": values})
    schema = pa.schema([
        ("input_ids", pa.list_(pa.uint64())),
        ("token_ids", pa.list_(pa.list_(pa.int64()))),
        ("top_values", pa.list_(pa.list_(pa.float32()))),
    ])  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


DTYPES: dict[str, Any] = {"float16": "<f2", "float32": "<f4", "float64": "<f8"}


def packed_floats(values: NDArray[np.float64], dtype: str) -> bytes:
    """Little-endian numbers; bfloat16 is the upper half of float32, cut."""
    if dtype == "bfloat16":
        return (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2").tobytes()
    return values.astype(DTYPES[dtype]).tobytes()


def unrounded(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """The numbers that `packed_floats` stores."""
    if dtype == "bfloat16":
        wide = values.astype("<f4").view("<u4") & np.uint32(0xFFFF0000)
        return wide.view("<f4").astype(np.float64)
    return values.astype(DTYPES[dtype]).astype(np.float64)


def packed_bits(numbers: Sequence[int], bits: int) -> bytes:
    """Numbers as a bit string, most significant bit first, padded to whole bytes with zeros."""
    text = "".join(f"{number:0{bits}b}" for number in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))


def packed_position(logprobs: NDArray[np.float64], config: dict[str, Any]) -> tuple[bytes, NDArray[np.float64]]:
    """The bytes of one position, and the log-probabilities that they mean; falling, float64 [k]."""
    values = np.diff(logprobs, prepend=0.0) if config["delta_encoding"] else logprobs
    exact, rest = values[: config["exact_k"]], values[config["exact_k"] :]
    data, meant = packed_floats(exact, config["exact_dtype"]), [unrounded(exact, config["exact_dtype"])]
    fit = np.zeros(len(rest))
    if config["polynomial_terms"]:
        x = np.linspace(0, 1, len(rest)) if config["normalize_t"] else np.arange(len(rest), dtype=float)
        named = {"sqrt": np.sqrt, "exp": np.exp}
        basis = np.stack([named[term](x) if term in named else x**term for term in config["polynomial_terms"]])
        coefficients = np.linalg.lstsq(basis.T, rest, rcond=None)[0]
        data += packed_floats(coefficients, config["term_dtype"])
        fit = unrounded(coefficients, config["term_dtype"]) @ basis
    at = 0
    for part in config["residual_bins"]:
        count, bits = part["num_elements"], part["element_bits"]
        left = (rest - fit)[at : at + count]
        scale = unrounded(np.array([np.abs(left).max() / 2 ** (bits - 1) or 1.0]), part["scale_dtype"])
        scale = np.where(scale == 0, 1.0, scale)  # a residual below the smallest number of the dtype
        low = 0 if bits == 1 else -(2 ** (bits - 1))
        steps = np.clip(np.round(left / scale), low, 1 if bits == 1 else 2 ** (bits - 1) - 1).astype(int)
        data += packed_floats(scale, part["scale_dtype"]) + packed_bits((steps - low).tolist(), bits)
        fit[at : at + count] += (steps * 2.0 - 1.0 if bits == 1 else steps) * scale[0]
        at += count
    meant.append(fit)
    whole = np.concatenate(meant)
    return data, whole.cumsum() if config["delta_encoding"] else whole


def write_distillkit_packed(folder: Path, samples: Sequence[Scored], config: dict[str, Any], pad: int) -> Path:
    """A folder as DistillKit writes it: two files, the settings, and a padding token after each sequence."""
    bits = max(1, int(np.ceil(np.log2(config["d"]))))
    rows = []
    for scored in samples:
        tops = [scored.top(place, config["k"]) for place in range(len(scored.tokens))]
        values = [packed_position(scored.logprobs[place][top], config)[0] for place, top in enumerate(tops)]
        rows.append({
            "input_ids": [*scored.tokens, pad],
            "compressed_logprobs": [list(data) for data in values],
            "bytepacked_indices": [list(packed_bits(top, bits)) for top in tops],
        })  # fmt: skip
    inner = pa.list_(pa.list_(pa.uint8()))
    schema = pa.schema([
        ("input_ids", pa.list_(pa.uint64())), ("compressed_logprobs", inner), ("bytepacked_indices", inner)
    ])  # fmt: skip
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"data_{number}.parquet")
    return folder
