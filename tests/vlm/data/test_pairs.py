"""Preference data: every dialect gives two samples that differ in their last answer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.vlm.data.data_list import DataList
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet

QUESTION, YES, NO = "<image>\nis it red?", "yes, it is", "no"
ASKED = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it red?"}]}
ANSWERED = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in (YES, NO)]
IMAGE = {"image": "a.png"}
DIALECTS: dict[str, dict[str, Any]] = {
    "llava, texts": {"conversations": [{"from": "human", "value": QUESTION}], "chosen": YES, "rejected": NO},
    "llava, turns": {
        "conversations": [{"from": "human", "value": QUESTION}],
        "chosen": {"from": "gpt", "value": YES},
        "rejected": {"from": "gpt", "value": NO},
    },
    "llava, the answer repeated": {
        "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": YES}],
        "chosen": YES,
        "rejected": NO,
    },
    "trl, parts": {"prompt": [ASKED], "chosen": ANSWERED[:1], "rejected": ANSWERED[1:]},
    "trl, texts": {"prompt": "is it red?", "chosen": YES, "rejected": NO},
    "trl, no prompt": {"chosen": [ASKED, ANSWERED[0]], "rejected": [ASKED, ANSWERED[1]]},
    "a prompt and whole conversations": {
        "prompt": "is it red?",
        "chosen": [{"role": "user", "content": "is it red?"}, ANSWERED[0]],
        "rejected": [{"role": "user", "content": "is it red?"}, ANSWERED[1]],
    },
    "question": {"question": "is it red?", "chosen": YES, "rejected": NO},
    "messages": {"messages": [ASKED], "chosen": ANSWERED[0], "rejected": ANSWERED[1]},
}


def opened(folder: Path, entries: list[Any], **settings: Any) -> Any:
    path = folder / "pairs.json"
    path.write_text(json.dumps(entries))
    return open_data(DataSet(path=path, images=folder, pairs=True, **settings))


@pytest.mark.parametrize("name", DIALECTS)
def test_both_samples_of_every_dialect(name: str, tmp_path: Path) -> None:
    images = {"images": ["a.png"]} if "trl" in name else IMAGE
    chosen, rejected = opened(tmp_path, [{"id": 7, **images, **DIALECTS[name]}])
    for sample, side, text in ((chosen, "chosen", YES), (rejected, "rejected", NO)):
        assert sample.problem is None and sample.id == f"7#{side}" and sample.images == ("a.png",)
        question, answer = sample.turns
        assert question.speaker == "human" and question.value.replace("\n", "") == "<image>is it red?"
        assert (answer.speaker, answer.value, answer.trained) == ("gpt", text, True)
    assert chosen.turns[0] == rejected.turns[0] and (chosen.index, rejected.index) == (0, 1)


def test_only_the_last_answer_is_trained_on(tmp_path: Path) -> None:
    earlier = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi", "loss": 1}]
    entry = {"conversations": [*earlier, {"from": "human", "value": "red?"}], "chosen": YES, "rejected": NO}
    for sample in opened(tmp_path, [entry]):
        assert [turn.trained for turn in sample.turns if turn.speaker == "gpt"] == [False, True]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"prompt": "red?", "chosen": YES}, "has no 'rejected', but data.pairs is true"),
        ({"chosen": YES, "rejected": NO}, "answer no question"),
        (
            {"chosen": [{"role": "user", "content": "a"}, *ANSWERED[:1]], "rejected": [ASKED, *ANSWERED[1:]]},
            "begin with different turns",
        ),
    ],
)
def test_both_samples_of_an_entry_that_is_no_pair_are_unusable(entry: Any, problem: str, tmp_path: Path) -> None:
    found = list(opened(tmp_path, [entry]))
    assert [sample.id for sample in found] == ["#0#chosen", "#0#rejected"]
    assert all(sample.problem is not None and problem in sample.problem for sample in found)


def test_without_the_setting_the_message_names_it(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([{**IMAGE, **DIALECTS["llava, texts"]}]))
    [sample] = open_data(DataSet(path=tmp_path / "pairs.json", images=tmp_path))
    assert sample.problem is not None


def test_pieces_count_samples_and_a_share_takes_whole_pairs(tmp_path: Path) -> None:
    entries = [{"id": n, "prompt": f"{n}?", "chosen": YES, "rejected": NO} for n in range(40)]
    source = opened(tmp_path, entries)
    [piece] = source.pieces
    assert piece.num_samples == len(source) == 80 and source.starts_with(piece, 0) and source.is_sequential
    samples = DataList([DataSet(path=tmp_path / "pairs.json", images=tmp_path, pairs=True, share=0.5)])
    ids = [samples[index].id for index in range(len(samples))]
    assert 20 < len(ids) < 60 and len(ids) % 2 == 0
    assert [one.removesuffix("#chosen") for one in ids[::2]] == [one.removesuffix("#rejected") for one in ids[1::2]]
    assert np.all(np.diff([int(one.partition("#")[0]) for one in ids[::2]]) > 0)
