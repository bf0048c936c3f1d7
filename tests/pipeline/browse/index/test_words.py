"""The search: FTS5, its replacement, and a plain scan find the same."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from scanned_store import holds, words

from alignkd.pipeline.browse.index.database import IndexFile
from alignkd.pipeline.browse.index.words import phrases_of, search_text, words_of

PIECES = ["cat", "Cat", "cats", "ca", "CAFÉ", "cafe\u0301", "Straße", "STRASSE", "ёлка", "猫", "犬猫", "ひらがな", "٣٤",
          "a1", "_", "-", "*", '"', " ", "\n", "\x00", "\ud800", "ﬁ", "℃", "Ⅷ", "İ", "é", "AND", "NOT", "NEAR(", "col:",
          "हिन्दी", "한국어", "\U0001f600"]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=7).map("".join) | st.text(
    st.characters(max_codepoint=0x7FF), max_size=20
)


@settings(max_examples=60)
@given(st.lists(texts, min_size=1, max_size=5), st.lists(texts, min_size=1, max_size=6))
def test_all_ways_find_the_same(said: list[str], queries: list[str]) -> None:
    with TemporaryDirectory() as folder:
        files = [IndexFile(Path(folder) / str(fts), "owner", create=True, fts=fts) for fts in (True, False)]
        _compare(files, said, queries)


def _compare(files: list[IndexFile], said: list[str], queries: list[str]) -> None:
    for file in files:
        with file.writing():
            base = file.add(0, 1, {}, [search_text(text) for text in said]).base
    for query in queries:
        expected = [number for number, text in enumerate(said) if holds(text, query)]
        phrases = phrases_of(query)
        for file in files:
            if phrases:
                assert (file.find(phrases) - base).tolist() == expected, query
            else:
                assert phrases == [] or expected == []
    for file in files:
        file.close()


@given(texts)
def test_words_are_those_of_a_second_definition(text: str) -> None:
    assert words_of(text) == words(text)


def test_what_people_type() -> None:
    said = "The café's 猫が好き, isn't it? A traffic light."
    for query in ("cafe", "CAFÉ", "好き", "猫が", "traffic*", "traf*", '"traffic light"', "light traffic", "isn't"):
        assert holds(said, query), query
    for query in ("traf", '"light traffic"', "犬", "...", "cafes", '"traf*"'):
        assert not holds(said, query), query
