"""Rows in the temporary file, the places of positions in another tool's tokens, and what is kept of a distribution."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.teacher_dump.imported.alignment import ShiftCounts, supervised_rows
from alignkd.teacher_dump.imported.formats.vllm import vllm_row
from alignkd.teacher_dump.imported.kept import Kept, logits_of
from alignkd.teacher_dump.imported.places import places_in
from alignkd.teacher_dump.imported.row import ForeignRow, row_of_lists
from alignkd.teacher_dump.imported.spool import RowSpool
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.examples import Tokens
from alignkd.vlm.inputs.position_map import position_map, spliced_position_map

Entries = list[tuple[list[int], list[float]] | None]


@st.composite
def rows(draw: st.DrawFn) -> ForeignRow:
    counts = draw(st.lists(st.integers(0, 4), max_size=5))
    value = st.floats(-30, 0, width=32)
    entries: Entries = [
        None
        if not count
        else (
            draw(st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count)),
            draw(st.lists(value, min_size=count, max_size=count)),
        )
        for count in counts
    ]
    tokens = draw(st.none() | st.lists(st.integers(0, 2**31), min_size=len(entries), max_size=9))
    return row_of_lists(
        draw(st.text(max_size=5)),
        entries,
        id=draw(st.none() | st.text(max_size=5)),
        predicts=list(range(-len(entries), 0)),
        from_end=True,
        tokens=tokens,
        num_tokens=draw(st.none() | st.integers(0, 9)),
    )


@settings(max_examples=60)
@given(st.lists(rows(), max_size=4))
def test_rows_come_back_in_any_order(given_rows: list[ForeignRow]) -> None:
    with RowSpool() as spool:
        spool.add_all(given_rows, lambda row: None)
        assert len(spool) == len(given_rows)
        for number in reversed(range(len(spool))):
            found, expected = spool[number], given_rows[number]
            for name, value in vars(expected).items():
                if isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(getattr(found, name), value)
                else:
                    assert getattr(found, name) == value, name


def decode(ids: Sequence[int]) -> str:
    return f"t{ids[0]}"


def placed(ids: list[int]) -> Tokens:
    """As MobileVLM: one -200 for each image of three tokens, the last two tokens supervised."""
    labels = [-100] * (len(ids) - 2) + ids[-2:]
    positions = position_map(ids, labels, vision_tokens=3)
    return Tokens(input_ids=np.array(ids, np.int32), labels=np.array(labels, np.int32), positions=positions)


def generic(ids: list[int], image: int) -> Tokens:
    """As other models: an id for every vision token."""
    labels = np.array([-100] * (len(ids) - 2) + ids[-2:], np.int32)
    is_vision = np.array(ids) == image
    positions = spliced_position_map(is_vision, labels, [int(is_vision.sum())], blocks_of_images=False)
    return Tokens(input_ids=np.array(ids, np.int32), labels=labels, positions=positions)


def row(tokens: list[int], *lengths: int) -> ForeignRow:
    return row_of_lists("row", [], id=None, predicts=[], tokens=tokens, lengths=lengths)


@pytest.mark.parametrize(
    ("tokens", "foreign", "places"),
    [
        (placed([1, 7, 8, 9]), [1, 7, 8, 9], [0, 1, 2, 3]),
        (placed([1, -200, 8, 9]), [1, 5, 5, 5, 8, 9], [0, 1, 2, 3, 4, 5]),
        (placed([1, -200, 8, 9]), [1, 0, 1, 2, 8, 9], [0, 1, 2, 3, 4, 5]),
        (placed([1, -200, 8, 9]), [1, 5, 8, 9], [0, 1, -1, -1, 2, 3]),
        (placed([1, -200, -200, 8, 9]), [1, 5, 5, 8, 9], [0, 1, -1, -1, 2, -1, -1, 3, 4]),
        (generic([1, 6, 6, 8, 9], 6), [1, 6, 6, 8, 9], [0, 1, 2, 3, 4]),
        (generic([1, 6, 6, 8, 9], 6), [1, 5, 8, 9], [0, 1, -1, 2, 3]),
    ],
)
def test_images_may_be_expanded_or_one_placeholder(tokens: Tokens, foreign: list[int], places: list[int]) -> None:
    assert places_in(row(foreign), tokens, decode).tolist() == places


@pytest.mark.parametrize(
    ("tokens", "foreign", "message"),
    [
        (placed([1, 7, 8, 9]), [1, 7, 5, 9], r"token 2 has id 5 \('t5'\), the checkpoint makes 8 \('t8'\)"),
        (placed([1, 7, 8, 9]), [1, 7, 8], "has 3 tokens, the checkpoint makes 4; token 3 of the checkpoint is 9"),
        (placed([1, 7, 8, 9]), [1, 7, 8, 9, 2], "has 5 tokens, the checkpoint makes 4; token 4 of the file is 2"),
        (placed([1, -200, 8, 9]), [1, 8, 9], "token 2 has id 9"),  # a tool that has not seen the image
        (generic([1, 6, 6, 8, 9], 6), [1, 6, 7, 8, 9], "token 2 has id 7"),
        (placed([1, -200, 8, 9]), [1, 5, 5, 8, 9], "has 5 tokens|token"),
    ],
)
def test_other_tokens_are_named(tokens: Tokens, foreign: list[int], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        places_in(row(foreign), tokens, decode)


def test_one_token_more_is_accepted_where_the_format_adds_one() -> None:
    assert places_in(row([1, 7, 8, 9, 0], 5, 4), placed([1, 7, 8, 9]), decode).tolist() == [0, 1, 2, 3]


def distribution(of: int) -> tuple[list[int], list[float]]:
    """A distribution that can be recognised by its first token."""
    return [of, 30], [float(np.log(0.6)), float(np.log(0.3))]


def test_the_distribution_of_the_next_token() -> None:
    """Of each token, in its own row or the row before; the supervised positions are those before tokens 2 and 3."""
    tokens = placed([1, 7, 8, 9])
    own = row_of_lists(
        "row", [None, *map(distribution, (17, 18, 19))], id=None, predicts=[0, 1, 2, 3], tokens=[1, 7, 8, 9]
    )
    before = row_of_lists(
        "row",
        [*map(distribution, (17, 18, 19)), None],
        id=None,
        predicts=[-4, -3, -2, -1],
        from_end=True,
        tokens=[1, 7, 8, 9],
    )
    for found, shift in ((own, 0), (before, 1)):
        chosen = supervised_rows(found, tokens, decode, shift=shift)
        assert [found.ids[found.offsets[number]] for number in chosen] == [18, 19]


KEPT = Kept(top_k=2, knows_tail=True, exponent=1.0, vocab_size=100, num_tokens=90)


def one(probs: dict[int, float], label: int, **changes: Any) -> Any:
    """What is kept of one distribution: token -> probability, and the mass of the rest."""
    entries: Entries = [(list(probs), [float(np.log(p)) if p else -np.inf for p in probs.values()])]
    found = logits_of(
        row_of_lists("row", entries, id=None, predicts=[0], tokens=[0]),
        np.array([0]),
        np.array([label], np.int32),
        Kept(**vars(KEPT) | changes),
    )
    kept = dict(zip(found.ids.tolist(), np.exp(found.logprobs.astype(float)).round(6).tolist(), strict=True))
    return kept, None if found.tail_logmass is None else float(np.exp(found.tail_logmass[0]))


def test_the_most_probable_and_the_label_are_kept() -> None:
    probs = {5: 0.1, 6: 0.4, 7: 0.2, 8: 0.05}
    kept, tail = one(probs, 8)
    assert kept == {6: 0.4, 7: 0.2, 8: 0.05} and tail == pytest.approx(0.35)
    kept, tail = one(probs, 3)  # a label that the file does not have
    assert kept == {6: 0.4, 7: 0.2} and tail == pytest.approx(0.4)


@settings(max_examples=80)
@given(st.data(), st.integers(1, 5), st.integers(1, 6), st.booleans(), st.sampled_from([1.0, 0.5, 2.0]))
def test_many_positions_equal_each_alone(
    data: st.DataObject, positions: int, top_k: int, knows_tail: bool, exponent: float
) -> None:
    """Against a plain computation, position by position, on dictionaries."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    exponent = 1.0 if knows_tail else exponent
    entries: Entries = []
    for _ in range(positions):
        count = int(random.integers(1, 8))
        probs = random.dirichlet(np.ones(count + 1))[:count]
        entries.append((random.choice(99, count, replace=False).tolist(), np.log(probs).tolist()))
    labels = random.integers(0, 90, positions).astype(np.int32)
    chosen = random.permutation(positions)
    for place, number in enumerate(chosen):  # some labels are there
        if random.random() < 0.5:
            labels[place] = entries[number][0][-1]  # type: ignore[index]
    kept = Kept(top_k=top_k, knows_tail=knows_tail, exponent=exponent, vocab_size=99, num_tokens=90)
    scored = row_of_lists("row", entries, id=None, predicts=list(range(positions)), tokens=[0] * positions)
    expected: list[dict[int, float]] = []
    tails = []
    for number, label in zip(chosen, labels, strict=True):
        ids, logprobs = entries[number]  # type: ignore[misc]
        known = {token: np.float32(value) for token, value in zip(ids, logprobs, strict=True) if token < 90}
        best = sorted(known, key=lambda token, known=known: -known[token])  # type: ignore[misc]
        taken = {token: float(known[token]) for token in best if token in best[:top_k] or token == label}
        mass = sum(np.exp(value) for value in taken.values())
        if not knows_tail:
            total = sum(np.exp(value) ** exponent for value in taken.values())
            taken = {token: value * exponent - np.log(total) for token, value in taken.items()}
        expected.append(taken)
        tails.append(max(1 - mass, len(taken) * 2.0**-24))
    if not all(expected):
        with pytest.raises(SampleError, match="has no entries"):
            logits_of(scored, chosen, labels, kept)
        return
    found = logits_of(scored, chosen, labels, kept)
    for place, (start, stop) in enumerate(zip(found.offsets, found.offsets[1:], strict=False)):
        assert found.ids[start:stop].tolist() == [*expected[place]]
        np.testing.assert_allclose(found.logprobs[start:stop], [*expected[place].values()], rtol=1e-5, atol=1e-6)
    if knows_tail:
        assert found.tail_logmass is not None
        np.testing.assert_allclose(np.exp(found.tail_logmass), tails, rtol=1e-4)
    else:
        assert found.tail_logmass is None


def test_padding_of_the_vocabulary_is_a_part_of_the_tail() -> None:
    kept, tail = one({95: 0.3, 6: 0.4, 7: 0.2}, 6)
    assert kept == {6: 0.4, 7: 0.2} and tail == pytest.approx(0.4)
    assert 100 in one({100: 0.3, 6: 0.4}, 6)[0]  # another tokenizer: the store refuses it


def test_an_unknown_tail_and_a_temperature() -> None:
    kept, tail = one({5: 0.1, 6: 0.4, 7: 0.2}, 6, knows_tail=False)
    assert tail is None and kept == {6: round(2 / 3, 6), 7: round(1 / 3, 6)}
    kept, _ = one({6: 0.4, 7: 0.2}, 6, knows_tail=False, exponent=2.0)  # p_1 is proportional to p_T ** T
    assert kept == {6: 0.8, 7: 0.2}


def test_a_tail_below_the_rounding_is_not_zero() -> None:
    """Reverse KL with a tail of zero would be infinite; with every token kept there is none."""
    _, tail = one({5: 0.7, 6: 0.3}, 5)
    assert tail == pytest.approx(2 * 2.0**-24)
    _, tail = one({0: 0.7, 1: 0.3}, 1, num_tokens=2, vocab_size=5)
    assert tail == 0


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ({5: 0.9, 6: 0.3}, "probabilities sum to 1.2000"),
        ({5: float("nan")}, "a log-probability is not finite"),
        ({5: 0.0}, "has no entries"),
    ],
)
def test_what_is_no_distribution(probs: dict[int, float], message: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(SampleError, match=message):
        one(probs, 5)


def test_shifts_are_counted_on_clear_neighbours_alone() -> None:
    """Twenty tokens whose distributions contain the next token's label: `before` in the words of the counts."""
    labels = np.arange(40, 60, dtype=np.int32)
    entries: Entries = [([int(label) + 1, 7], [-0.1, -3.0]) for label in labels]
    found = row_of_lists("row", entries, id=None, predicts=list(range(20)), tokens=list(range(20)))
    counts = ShiftCounts()
    counts.add(found, np.arange(20), labels)
    assert (counts.positions, counts.own, counts.before, counts.after) == (18, 0, 18, 0)
    assert counts.clearly_more(counts.before, counts.own) and not counts.clearly_more(counts.own, counts.before)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"prompt_token_ids": [1, 2], "prompt_logprobs": [None]}, "has 2 prompt_token_ids and 1 prompt_logprobs"),
        ({"choices": [{}, {}]}, "has several answers"),
        ({"custom_id": "x", "error": "timeout", "response": None}, "the request failed: timeout"),
        ({"prompt_token_ids": [1], "choices": [{}]}, "has neither prompt_logprobs nor logprobs"),
        ({"prompt_token_ids": [True], "prompt_logprobs": [None]}, "expected a list of token ids"),
        ({"prompt_logprobs": [{"5": {"logprob": "x"}}]}, "logprob is 'x', expected a number"),
        ({"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None}}]}, "as the text"),
        ({"choices": [{"logprobs": {"content": [{"token": "7", "logprob": -1.0}]}}]}, "given as the text '7'"),
    ],
)
def test_entries_of_vllm_that_cannot_be_read(entry: dict[str, Any], problem: str) -> None:
    found = vllm_row(entry, "row")
    assert found.problem is not None and problem in found.problem


def test_a_completion_that_echoes_its_prompt() -> None:
    tokens = [f"token_id:{n}" for n in (1, 7, 8)]
    top = [None, {"token_id:7": -0.5, "token_id:9": -1.0}, {"token_id:3": -0.2}]
    logprobs = {"tokens": tokens, "token_logprobs": [None, -0.5, -4.0], "top_logprobs": top}
    found = vllm_row({"id": "cmpl-1", "choices": [{"prompt_token_ids": [1, 7], "logprobs": logprobs}]}, "row")
    assert found.problem is None and found.id is None and found.tokens is not None
    assert found.tokens.tolist() == [1, 7, 8] and found.lengths == (3, 2)
    assert found.predicts.tolist() == [1, 2] and found.ids.tolist() == [7, 9, 3, 8]
