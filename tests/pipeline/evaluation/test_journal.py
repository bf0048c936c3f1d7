"""A journal keeps every complete line, whatever a killed process left after them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.pipeline.evaluation.journal import Answered, Journal, Process, read_journal

BLOCK = range(4, 9)
FIRST, SECOND = (Process(device=device, batch=2, versions={"torch": "2"}) for device in ("cpu", "gpu"))
ANSWERS = [
    Answered(position=5, text='a "quoted"\nanswer, \u2028 \u0436', tokens=3, seconds=0.25),
    Answered(position=4, finished=False, tokens=128),
    Answered(position=8, unusable="broken image"),
    Answered(position=6, text="yes"),
]


def write(path: Path) -> None:
    with Journal(path, BLOCK, FIRST) as journal:
        journal.add(ANSWERS[:2])
        journal.add(ANSWERS[2:])


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl", BLOCK).answers == {}
    write(tmp_path / "a.jsonl")
    found = read_journal(tmp_path / "a.jsonl", BLOCK)
    assert list(found.answers.values()) == ANSWERS and found.processes == [FIRST] and found.is_whole


def test_opening_drops_what_could_not_be_asked_and_names_the_new_process(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    with Journal(tmp_path / "a.jsonl", BLOCK, SECOND) as journal:
        journal.add([Answered(position=8, text="no")])
    with Journal(tmp_path / "a.jsonl", BLOCK, SECOND):
        pass
    found = read_journal(tmp_path / "a.jsonl", BLOCK)
    assert found.answers[8].text == "no" and len(found.answers) == 4 and found.processes == [FIRST, SECOND]


@given(st.data())
def test_any_beginning_of_the_file_gives_the_answers_of_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "a.jsonl"
    write(path)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    junk = data.draw(st.sampled_from([b"", b"\0" * 40, b'{"position": 6}', b"[1]\n", b'{"position": 99}\n', b"\xff\n"]))
    path.write_bytes(whole[:cut] + junk)
    lines = max(0, whole[:cut].count(b"\n") - 1)
    if cut == 0 or whole[cut - 1 : cut] == b"\n" or not junk.endswith(b"\n"):
        assert list(read_journal(path, BLOCK).answers.values()) == ANSWERS[:lines]
    with Journal(path, BLOCK, FIRST) as journal:
        journal.add([Answered(position=7, text="new")])
    found = read_journal(path, BLOCK)
    assert found.is_whole and list(found.answers.values())[-1].text == "new"
    assert list(found.answers.values())[:-1] == [one for one in ANSWERS[:lines] if one.unusable is None]
