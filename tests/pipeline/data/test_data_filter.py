"""`alignkd data filter`: every sample is kept or dropped for a reason, in order; each filter against a rule by hand."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import generated_folder
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.pipeline.config.run_config import DataConfig
from alignkd.pipeline.data.filter.filters import Filters, SampleFilter, option_of
from alignkd.pipeline.data.filter.repetition import repetition
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Generated, Turn

Run = Callable[..., "CompletedProcess[str]"]

generated = st.builds(
    Generated,
    by=st.just("t"),
    logprob=st.none() | st.floats(-40, 0),
    tokens=st.none() | st.integers(0, 12),
    finished=st.none() | st.booleans(),
)
answers = st.builds(Turn, st.just("gpt"), st.text("ab ", max_size=30), st.just(True), st.none() | generated)
rounds = st.lists(st.tuples(st.sampled_from([Turn("human", "q"), Turn("human", "r")]), answers), min_size=1, max_size=2)
samples = st.lists(
    st.builds(
        lambda index, turns: Sample(index=index, id="a", images=(), turns=tuple(t for pair in turns for t in pair)),
        st.just(0),
        rounds,
    ),
    max_size=12,
)
filters = st.builds(
    Filters,
    min_logprob_per_token=st.none() | st.floats(-5, 0),
    min_tokens=st.none() | st.integers(0, 12),
    max_tokens=st.none() | st.integers(0, 12),
    finished_only=st.booleans(),
    min_characters=st.none() | st.integers(0, 20),
    max_characters=st.none() | st.integers(0, 20),
    max_repetition=st.none() | st.floats(0, 1),
    dedupe=st.booleans(),
)


def repeated_share(text: str) -> float:
    """`repetition` by counting: how many runs of 4 words equal an earlier one."""
    words = text.split()
    runs = [words[start : start + 4] for start in range(max(0, len(words) - 3))]
    return sum(run in runs[:number] for number, run in enumerate(runs)) / len(runs) if runs else 0.0


def passes(turn: Turn, wanted: Filters) -> dict[str, bool]:
    """Whether an answer passes each filter, by name."""
    how, length = turn.generated, len(turn.value.strip())
    found = {
        "min_characters": wanted.min_characters is None or length >= wanted.min_characters,
        "max_characters": wanted.max_characters is None or length <= wanted.max_characters,
        "max_repetition": wanted.max_repetition is None or repeated_share(turn.value) <= wanted.max_repetition,
    }
    if how is None:
        return found
    tokens = how.tokens
    mean = how.logprob / tokens if how.logprob is not None and tokens else None
    return found | {
        "min_logprob_per_token": wanted.min_logprob_per_token is None
        or (mean is not None and mean >= wanted.min_logprob_per_token),
        "min_tokens": wanted.min_tokens is None or (tokens is not None and tokens >= wanted.min_tokens),
        "max_tokens": wanted.max_tokens is None or (tokens is not None and tokens <= wanted.max_tokens),
        "finished_only": not wanted.finished_only or how.finished is True,
    }


@settings(max_examples=100)
@given(samples, filters)
def test_a_sample_is_kept_or_dropped_by_a_filter_that_it_fails(found: list[Sample], wanted: Filters) -> None:
    judge, kept = SampleFilter(wanted), list[Sample]()
    for sample in found:
        by_answer = [passes(turn, wanted) for turn in sample.turns if turn.speaker == "gpt"]
        is_copy = wanted.dedupe and any(
            [(turn.speaker, turn.value) for turn in other.turns]
            == [(turn.speaker, turn.value) for turn in sample.turns]
            for other in kept
        )
        drop = judge.drop(sample)
        if drop is None:
            assert all(all(results.values()) for results in by_answer) and not is_copy
            judge.keep(sample)
            kept.append(sample)
            continue
        assert drop.option in wanted.given and "\n" not in drop.reason
        failed = {option_of(name) for results in by_answer for name, passed in results.items() if not passed}
        assert drop.option in failed or (is_copy and not failed and drop.option == "--dedupe")
    assert judge.generated == sum(turn.generated is not None for sample in found for turn in sample.turns)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("one two three", 0.0),
        ("one two three four", 0.0),
        ("a a a a a", 0.5),
        ("a a a a a a", 2 / 3),
        ("the cat sat down. the cat sat down.", 1 / 5),
        ("谢谢谢谢谢谢", 2 / 3),
        ("ありがとう", 0.0),
    ],
)
def test_repetition_by_hand(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


@given(st.text("ab \n\t", max_size=60))
def test_repetition_counts_runs_that_came_before(text: str) -> None:
    assert repetition(text) == pytest.approx(repeated_share(text)) and 0 <= repetition(text) < 1


def entry(name: str, answer: str, how: dict[str, Any] | bool | None, question: str = "q") -> dict[str, Any]:
    marks = {} if how is None else {"generated": how}
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer, **marks}]
    return {"id": name, "conversations": turns}


def how(logprob: float, tokens: int, *, finished: bool = True) -> dict[str, Any]:
    return {"by": "tiny-teacher", "logprob": logprob, "tokens": tokens, "finished": finished}


ENTRIES = [
    entry("good", "a black cat", how(-1.0, 4)),
    entry("unlikely", "a purple cat", how(-8.0, 4)),
    entry("cut", "a cat and a dog and", how(-2.0, 6, finished=False)),
    entry("loop", "no no no no no no no", how(-0.5, 8)),
    entry("copy", "a black cat", how(-1.5, 4)),
    entry("short", "ok", how(-0.1, 2)),
    entry("by a person", "it is a cat", None),
    entry("unknown", "two dogs", True),
    {"id": "broken", "conversations": [{"from": "cat", "value": "miaow"}]},
    entry("other", "a black cat", how(-1.0, 4), question="r"),
]
FILTERS = ("--min-logprob-per-token", -1.5, "--finished-only", "--max-repetition", 0.3, "--min-tokens", 3, "--dedupe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `alignkd generate` leaves: two files of answers."""
    return generated_folder.write(tmp_path / "generated", [ENTRIES[:5], ENTRIES[5:]])


def test_the_command_counts_and_lists_what_it_drops(folder: Path, tmp_path: Path, alignkd_here: Run) -> None:
    out, listing = tmp_path / "kept.jsonl", tmp_path / "dropped.jsonl"
    command = ("data", "filter", folder, *FILTERS, "--out", out, "--list", listing)
    done = alignkd_here(*command)
    assert done.returncode == 0, done.stderr
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in kept] == ["good", "by a person", "other"]
    assert kept == [line for line in ENTRIES if line["id"] in ("good", "by a person", "other")]
    dropped = {line["id"]: line for line in map(json.loads, listing.read_text().splitlines())}
    assert {name: line["kind"] for name, line in dropped.items()} == {
        "unlikely": "--min-logprob-per-token",
        "cut": "--finished-only",
        "loop": "--max-repetition",
        "copy": "--dedupe",
        "short": "--min-tokens",
        "unknown": "--min-logprob-per-token",
        "broken": "malformed",
    }
    assert dropped["unlikely"]["reason"] == "turn 1: log-probability per token is -2.0000, less than -1.5"
    assert dropped["unknown"]["reason"] == "turn 1: its log-probability per token is not known"
    assert dropped["cut"]["reason"] == "turn 1: a length limit cut it"
    assert dropped["loop"]["reason"] == "turn 1: repetition is 0.750, more than 0.3"
    assert dropped["short"]["reason"] == "turn 1: 2 tokens, fewer than 3"
    assert {*dropped, *(line["id"] for line in kept)} == {line["id"] for line in ENTRIES}

    counts = Counter(line["kind"] for line in dropped.values())
    for option in ("--min-logprob-per-token", "--finished-only", "--max-repetition", "--min-tokens", "--dedupe"):
        assert f"dropped by {option}: {counts[option]}" in done.stdout
    assert "3 of 10 samples written" in done.stdout and "unusable: 1: unknown role 'cat'" in done.stdout
    printed = done.stdout[done.stdout.index("data:") :]
    assert yaml.safe_load(printed) == {"data": {"conversations": str(out)}}
    again = json.loads(alignkd_here(*command, "--force", "--json").stdout)
    assert again["filtered"] == {option: counts[option] for option in again["filtered"]}
    assert again["written"] + sum(again["filtered"].values()) + sum(again["unusable"].values()) == again["samples"]


@pytest.mark.parametrize("is_given", [True, False])
def test_the_next_step_is_a_section_of_a_configuration(is_given: bool, tmp_path: Path, alignkd_here: Run) -> None:
    data, images, out = tmp_path / "given.json", tmp_path / "a: b", tmp_path / "kept.jsonl"
    images.mkdir()
    data.write_text(json.dumps([entry("a", "yes", None, "<image>\nq") | {"image": "a.jpg"}]))
    options = ("--images", images) if is_given else ()
    done = alignkd_here("data", "filter", data, "--dedupe", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "images: 1 paths kept" in done.stdout and ("# images:" in done.stdout) != is_given
    section = yaml.safe_load(done.stdout[done.stdout.index("data:") :])["data"]
    config = DataConfig.model_validate(section)
    assert (config.conversations, config.images) == (out, images if is_given else None)


def test_what_is_written_has_the_same_samples(folder: Path, tmp_path: Path, alignkd_here: Run) -> None:
    before = {sample.id: sample.turns for sample in load_samples(folder)}
    for to in ("llava", "messages"):
        out = tmp_path / f"{to}.jsonl.gz"
        done = alignkd_here("data", "filter", folder, "--max-characters", 11, "--to", to, "--out", out)
        assert done.returncode == 0, done.stderr
        kept = load_samples(out)
        assert [sample.id for sample in kept] == ["good", "copy", "short", "by a person", "unknown", "other"]
        assert all(sample.turns == before[sample.id] for sample in kept)


def test_data_without_answers_of_a_model(tmp_path: Path, alignkd_here: Run) -> None:
    data, out = tmp_path / "given.json", tmp_path / "out.jsonl"
    data.write_text(json.dumps([entry("a", "yes", None), entry("b", "a longer answer", None)]))
    refused = alignkd_here("data", "filter", data, "--finished-only", "--dedupe", "--out", out)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and not out.exists()
    assert f"{data}: no answer is marked as written by a model, so --finished-only would drop nothing" in refused.stderr
    done = alignkd_here("data", "filter", data, "--min-characters", 4, "--out", out, "--json")
    assert json.loads(done.stdout)["filtered"] == {"--min-characters": 1}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "no filter is given, so nothing would be dropped"),
        (("--min-tokens", 5, "--max-tokens", 4), 2, "--min-tokens is 5, more than --max-tokens 4"),
        (("--min-characters", 5, "--max-characters", 4), 2, "--min-characters is 5, more than --max-characters 4"),
        (("--min-logprob-per-token", 0.5), 2, "0.5 is not in the range x<=0"),
        (("--max-repetition", 1.5), 2, "1.5 is not in the range 0<=x<=1"),
        (("--min-characters", 1000), 1, "none of 10 samples passes (--min-characters 9); relax the filters"),
    ],
)
def test_refusals(
    options: tuple[Any, ...], code: int, said: str, folder: Path, tmp_path: Path, alignkd_here: Run
) -> None:
    out = tmp_path / "out.jsonl"
    refused = alignkd_here("data", "filter", folder, *options, "--out", out)
    assert refused.returncode == code and said in " ".join(refused.stderr.split()) and not out.exists()


def test_the_input_is_not_replaced(folder: Path, alignkd_here: Run) -> None:
    inside = folder / "answers" / "00000000.jsonl"
    before = inside.read_bytes()
    refused = alignkd_here("data", "filter", folder, "--dedupe", "--out", inside, "--force")
    assert refused.returncode != 0 and inside.read_bytes() == before
