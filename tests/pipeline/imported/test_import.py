"""Files of other tools, made from a teacher's logits, become the store that a dump of this teacher writes."""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
from foreign_files import Scored
from foreign_worlds import assert_equals_dump, assert_same_samples, records, rows_of

from alignkd.storage import TruncatedLogits

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
TOP_K = 12


@pytest.fixture
def run(alignkd_here: Alignkd, golden_world: Any, tmp_path: Path) -> Callable[..., Any]:
    """`run(file, ...)`: the finished command; the store is tmp_path/store."""

    def start(*arguments: Any) -> Any:
        return alignkd_here(
            "shards", "import", *arguments, *golden_world.options, "--out", tmp_path / "store", "--json"
        )

    return start


@pytest.mark.parametrize("form", ["offline", "completions", "batch", "split", "no ids"])
def test_vllm_equals_a_dump(run: Callable[..., Any], golden_world: Any, tmp_path: Path, form: str) -> None:
    """The same entries, the same log-probabilities to float32, and the same tail."""
    file = foreign_files.write_vllm(tmp_path / "scored.jsonl", golden_world.samples, TOP_K, form)
    done = run(file, "--dtype", "float32", "--shard-size", 2, "--top-k", TOP_K)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["format"] == "vllm" and report["match"] == "id" and report["tail"] == "known"
    assert (report["num_records"], report["rows"], report["unused_rows"]) == (4, 4, 0)
    assert_equals_dump(tmp_path / "store", golden_world.top_k)


def renormalised(row: Mapping[int, float]) -> dict[int, float]:
    values = np.array(list(row.values()), np.float64)
    return dict(zip(row, (values - np.log(np.exp(values).sum())).tolist(), strict=True))


def assert_top_k_renormalised(store: Path, samples: list[Scored], k: int, atol: float) -> None:
    """The k most probable tokens of each supervised position, normalised over themselves."""
    for name, record in records(store).items():
        scored = next(sample for sample in samples if sample.id == name)
        assert isinstance(record.logits, TruncatedLogits) and record.logits.tail_logmass is None
        for place, row in zip(record.supervised_positions.tolist(), rows_of(record.logits), strict=True):
            expected = renormalised({token: float(scored.logprobs[place][token]) for token in scored.top(place, k)})
            assert row.keys() == expected.keys()
            np.testing.assert_allclose([row[token] for token in expected], list(expected.values()), atol=atol)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("shift", "alignment"), [(0, "token"), (1, "next")])
def test_axolotl_rows_of_either_alignment(
    run: Callable[..., Any], golden_world: Any, tmp_path: Path, shift: int, alignment: str, suffix: str
) -> None:
    file = tmp_path / f"kd.{suffix}"
    foreign_files.write_axolotl(file, golden_world.samples, TOP_K, shift=shift)
    done = run(file, "--dtype", "float32", "--alignment", alignment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["format"], report["alignment"], report["tail"]) == ("axolotl", alignment, "unknown")
    assert_same_samples(tmp_path / "store", golden_world.top_k)
    assert_top_k_renormalised(tmp_path / "store", golden_world.samples, TOP_K, 1e-5)


def test_distillkit_rows_are_found_by_their_tokens(alignkd_here: Alignkd, golden_world: Any, tmp_path: Path) -> None:
    """They are in another order than the data; a sample with an image is not among them, because its tokens in the
    other tool are not known."""
    file = foreign_files.write_distillkit_plain(tmp_path / "data_0.parquet", golden_world.samples, TOP_K)
    arguments = [file, *golden_world.options, "--out", tmp_path / "store", "--json", "--dtype", "float32"]
    done = alignkd_here("shards", "import", *arguments, "--alignment", "next")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["format"], report["match"], report["unused_rows"]) == ("distillkit", "tokens", 3)
    assert report["num_records"] == 1 and len(report["quarantined"]) == 3
    assert_top_k_renormalised(tmp_path / "store", golden_world.samples, TOP_K, 1e-5)


CONFIG = {
    "k": 24,
    "exact_k": 8,
    "exact_dtype": "float32",
    "polynomial_terms": [0, 1, 2, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [{"scale_dtype": "float16", "element_bits": 6, "num_elements": 10}],
    "delta_encoding": False,
    "error_diffusion": False,
    "normalize_t": False,
}


def test_packed_distillkit_is_what_its_bytes_mean(alignkd_here: Alignkd, golden_world: Any, tmp_path: Path) -> None:
    """A folder with its settings beside the files; MobileVLM's images by order, padding tokens at the end."""
    config = {**CONFIG, "d": golden_world.vocab_size}
    folder = foreign_files.write_distillkit_packed(tmp_path / "cache", golden_world.samples, config, pad=0)
    arguments = [folder, *golden_world.options, "--out", tmp_path / "store", "--json", "--dtype", "float32"]
    done = alignkd_here("shards", "import", *arguments, "--match", "order", "--alignment", "next")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_records"] == 4
    for name, record in records(tmp_path / "store").items():
        scored = next(sample for sample in golden_world.samples if sample.id == name)
        for place, row in zip(record.supervised_positions.tolist(), rows_of(record.logits), strict=True):
            top = scored.top(place, CONFIG["k"])
            meant = foreign_files.packed_position(scored.logprobs[place][top], config)[1]
            expected = renormalised(dict(zip(top, meant.tolist(), strict=True)))
            assert row.keys() == expected.keys()
            np.testing.assert_allclose([row[token] for token in expected], list(expected.values()), atol=2e-5)
