"""What does not fit is refused or listed, in one line that names the place and both values."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_files import Scored

from alignkd.storage import StoreReader

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
TOP_K = 6


@pytest.fixture
def run(alignkd_here: Alignkd, golden_world: Any, tmp_path: Path) -> Run:
    """`run(file, ...)`: the finished command; the store is tmp_path/store."""
    return lambda *arguments: alignkd_here(
        "shards", "import", *arguments, *golden_world.options, "--out", tmp_path / "store"
    )


def refused(run: Run, store: Path, *arguments: Any) -> str:
    """The one line of a command that must not write a store."""
    done = run(*arguments)
    assert done.returncode == 1, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("alignkd: ") and not [*store.glob("commits/*")]
    return line


def write(
    path: Path, samples: Sequence[Scored], change: Callable[[dict[str, Any]], object] = lambda entry: None
) -> Path:
    """Offline vLLM, with a change of every entry."""
    foreign_files.write_vllm(path, samples, TOP_K)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_a_shifted_file_is_refused_before_anything_is_written(run: Run, golden_world: Any, tmp_path: Path) -> None:
    """`prompt_logprobs` taken for those of the next token: the classic fault."""

    def shift(entry: dict[str, Any]) -> None:
        entry["prompt_logprobs"] = [*entry["prompt_logprobs"][1:], entry["prompt_logprobs"][-1]]

    file = write(tmp_path / "a.jsonl", golden_world.samples, shift)
    line = refused(run, tmp_path / "store", file)
    assert "shifted by one position" in line and str(file) in line and "--alignment" in line

    def other_way(entry: dict[str, Any]) -> None:
        entry["prompt_logprobs"] = [None, None, *entry["prompt_logprobs"][1:-1]]

    assert "shifted by one position" in refused(run, tmp_path / "store", write(file, golden_world.samples, other_way))


@pytest.mark.parametrize(("shift", "alignment"), [(0, "token"), (1, "next")])
@pytest.mark.parametrize("ids", [True, False])
def test_the_alignment_of_axolotl_is_found_out(
    run: Run, golden_world: Any, tmp_path: Path, shift: int, alignment: str, ids: bool
) -> None:
    """A teacher that knows the answers, as a trained one does: its label is among the entries."""
    sure = [certain(sample) for sample in golden_world.samples]
    file = foreign_files.write_axolotl(tmp_path / "kd.jsonl", sure, TOP_K, shift=shift, ids=ids)
    done = run(file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["alignment"] == alignment and "of their own distribution" in done.stderr


def certain(sample: Scored) -> Scored:
    logprobs = sample.logprobs.copy()
    for place, token in enumerate(sample.tokens[1:]):
        logprobs[place][token] = logprobs[place].max() + 1e-3
    return replace(sample, logprobs=logprobs)


def test_rows_that_show_no_alignment_need_an_option(run: Run, golden_world: Any, tmp_path: Path) -> None:
    file = foreign_files.write_axolotl(tmp_path / "kd.jsonl", golden_world.samples, 1, shift=0)
    assert "give --alignment token or next" in refused(run, tmp_path / "store", file)


def test_another_token_is_named_with_both_ids(run: Run, golden_world: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    changed = golden_world.samples[2]
    at = len(changed.tokens) - 3
    before, after = changed.tokens[at], (changed.tokens[at] + 1) % golden_world.vocab_size
    other = replace(changed, tokens=[*changed.tokens[:at], after, *changed.tokens[at + 1 :]])
    samples = [other if sample is changed else sample for sample in golden_world.samples]
    done = run(write(file, samples), "--json")
    assert done.returncode == 0, done.stderr
    ((_, name, reason),) = json.loads(done.stdout)["quarantined"]
    assert name == changed.id and f"token {at} has id {after} (" in reason and f"makes {before} (" in reason
    (entry,) = StoreReader(tmp_path / "store", allow_incomplete=True).quarantined
    assert entry.reason == reason


def test_too_many_unusable_samples_stop(run: Run, golden_world: Any, tmp_path: Path) -> None:
    def cut(entry: dict[str, Any]) -> None:
        if entry["id"] != "ft-0":
            entry["prompt_logprobs"][-1] = None

    file = write(tmp_path / "a.jsonl", golden_world.samples, cut)
    line = refused(run, tmp_path / "store", file, "--max-errors", 1)
    assert "--max-errors is 1" in line and "has no distribution at 1 of" in line
    done = run(file, "--json")
    assert len(json.loads(done.stdout)["quarantined"]) == 3


def test_samples_without_a_row_and_rows_without_a_sample(run: Run, golden_world: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [*golden_world.samples[1:], replace(golden_world.samples[0], id="unknown")])
    done = run(file)
    assert done.returncode == 0, done.stderr
    assert "1 unusable, 1 rows of the files belong to no sample" in done.stdout
    assert "'ft-0' (index 0): no row of the imported files has its id" in done.stderr
    again = run(file)
    assert again.returncode == 0 and "nothing left to do" in again.stdout


def test_order_needs_equal_numbers(run: Run, golden_world: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", golden_world.samples[1:], lambda entry: entry.pop("id"))
    line = refused(run, tmp_path / "store", file)
    assert "3 rows without ids" in line and "4 samples" in line
    done = run(write(file, golden_world.samples, lambda entry: entry.pop("id")), "--json")
    assert json.loads(done.stdout)["match"] == "order", done.stderr


def test_repeated_ids(run: Run, golden_world: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", golden_world.samples, lambda entry: entry.update(id="same"))
    assert "two rows have the id 'same'; give --match order" in refused(run, tmp_path / "store", file)
    assert run(file, "--match", "order").returncode == 0


def test_tokens_as_text_do_not_determine_ids(run: Run, golden_world: Any, tmp_path: Path) -> None:
    def as_text(entry: dict[str, Any]) -> None:
        entry["prompt_logprobs"] = [None, *({"the": -0.5} for _ in entry["prompt_logprobs"][1:])]

    line = refused(run, tmp_path / "store", write(tmp_path / "a.jsonl", golden_world.samples, as_text))
    assert "a token is given as the text 'the'" in line


def test_probabilities_above_one(run: Run, golden_world: Any, tmp_path: Path) -> None:
    """Renormalised over the entries, with the token itself beside them: not what vLLM writes."""

    def raise_all(entry: dict[str, Any]) -> None:
        for position in entry["prompt_logprobs"][1:]:
            for value in position.values():
                value["logprob"] = -0.1

    file = write(tmp_path / "a.jsonl", golden_world.samples, raise_all)
    assert "supervised token 0: probabilities sum to" in refused(run, tmp_path / "store", file)
    assert run(file, "--tail", "unknown").returncode == 0


def test_settings_of_another_cache(alignkd_here: Alignkd, golden_world: Any, tmp_path: Path) -> None:
    config = {"d": golden_world.vocab_size, "k": 6, "exact_k": 6, "residual_bins": [], "delta_encoding": False}
    config |= {"exact_dtype": "float32", "polynomial_terms": None, "normalize_t": False}
    folder = foreign_files.write_distillkit_packed(tmp_path / "cache", golden_world.samples[2:3], config, pad=0)
    run: Run = lambda *arguments: alignkd_here(  # noqa: E731
        "shards", "import", *arguments, *golden_world.options, "--out", tmp_path / "store"
    )
    (folder / "compression_config.yaml").write_text(json.dumps(config | {"exact_dtype": "bfloat16"}))
    line = refused(run, tmp_path / "store", folder)
    assert "compressed_logprobs has 24 bytes per token, the compression settings make 12" in line
    (folder / "compression_config.yaml").write_text(json.dumps(config | {"k": 5}))
    assert "exact_k is 6, above k 5" in refused(run, tmp_path / "store", folder)
    (folder / "compression_config.yaml").unlink()
    assert "compression_config.yaml" in refused(run, tmp_path / "store", folder)


def test_files_that_are_none_of_the_formats(run: Run, golden_world: Any, tmp_path: Path) -> None:
    store, file, table = tmp_path / "store", tmp_path / "a.jsonl", tmp_path / "a.parquet"
    file.write_text('{"id": 1, "text": "x"}\n')
    assert "entry 0 is an object with 'id', 'text'" in refused(run, store, file)
    table.write_bytes(b"PAR1 and no more")
    assert "not a complete parquet file" in refused(run, store, table)
    pq.write_table(
        pa.table({"input_ids": [[1]], "packed_indices": [[[1]]], "exact_values": [[[1.0]]], "coeffs": [[[1.0]]]}), table
    )
    assert "DistillKit's first version" in refused(run, store, table)
    pq.write_table(pa.table({"text": ["x"]}), table)
    assert "has the columns text" in refused(run, store, table)
    vllm = write(tmp_path / "b.jsonl", golden_world.samples)
    axolotl = foreign_files.write_axolotl(tmp_path / "c.jsonl", golden_world.samples, 3, shift=0)
    line = refused(run, store, vllm, axolotl)
    assert "is of axolotl" in line and "of vllm" in line
    assert "No such file" in refused(run, store, tmp_path / "absent.parquet")
    assert "No such file" in refused(run, store, tmp_path / "absent.jsonl")


def test_the_image_folder(alignkd_here: Alignkd, golden_world: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", golden_world.samples)
    at = golden_world.options.index("--images")
    without = [*golden_world.options[:at], *golden_world.options[at + 2 :]]
    for options, message in ((without, "--images is missing"), ([*without, "--images", "absent"], "which is not a")):
        done = alignkd_here("shards", "import", file, *options, "--out", tmp_path / "store")
        assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_cut_parquet_file(run: Run, golden_world: Any, tmp_path: Path) -> None:
    whole = foreign_files.write_distillkit_plain(tmp_path / "a.parquet", golden_world.samples, 3)
    whole.write_bytes(whole.read_bytes()[:-100])
    assert "not a complete parquet file" in refused(run, tmp_path / "store", whole)


def test_other_settings_of_an_existing_store(run: Run, golden_world: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", golden_world.samples)
    assert run(file).returncode == 0
    done = run(file, "--top-k", 3)
    assert done.returncode == 1 and "top_k is 7 in the store, 3 asked for" in done.stderr
