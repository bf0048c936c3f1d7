"""The demo's tokenizer: LLaMA's manners, short prompts, and the shipped file is the one that the code makes."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from alignkd.pipeline.demo.world.questions import conversation, scene_questions, text_questions
from alignkd.pipeline.demo.world.scenes import CELL_NAMES, make_scene
from alignkd.pipeline.demo.world.tokenizer import TOKENIZER_MODEL, VOCAB_SIZE, demo_corpus, train_tokenizer
from alignkd.vlm.data.turns import V1_SYSTEM, Turn
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.inputs.templates import tokenize_conversation
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer

QUESTION_WORDS = (
    "what which how many digit digits is are there the of sum row column left center right top middle bottom "
    "largest smallest larger plus and or any a an yes no none"
).split()
TOKENIZER = LegacyLlamaTokenizer(TOKENIZER_MODEL)


def pieces(text: str) -> list[str]:
    """The pieces of a text, blanks as U+2581."""
    return [TOKENIZER.piece(token) for token in TOKENIZER.encode(text, add_bos=False)]


def conversations(seed: int, how_many: int) -> Iterator[tuple[list[Turn], bool]]:
    """Turns of scene and text-only conversations, and whether an image belongs to them."""
    for number in range(how_many):
        scene = make_scene(seed, number, "held_out")
        with_image = number % 10 != 0
        questions = scene_questions(scene, 6) if with_image else text_questions(seed, number, 6)
        turns = conversation(questions, with_image=with_image)
        yield [Turn(turn["from"], turn["value"]) for turn in turns], with_image


def test_shipped_model_is_the_one_the_code_makes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.model", tmp_path / "second.model"
    train_tokenizer(demo_corpus(), first)
    train_tokenizer(demo_corpus(), second)
    assert first.read_bytes() == second.read_bytes()
    # Not the bytes: they hold the trainer's options, which grow with sentencepiece's version.
    made, shipped = (sentencepiece.SentencePieceProcessor(model_file=str(f)) for f in (first, TOKENIZER_MODEL))
    assert shipped.vocab_size() == VOCAB_SIZE <= 420
    for token in range(VOCAB_SIZE):
        assert made.id_to_piece(token) == shipped.id_to_piece(token)
        assert made.get_score(token) == shipped.get_score(token)


def test_special_ids_bytes_and_blanks_are_llamas() -> None:
    assert [TOKENIZER.piece(token) for token in (0, 1, 2)] == ["<unk>", "<s>", "</s>"]
    assert pieces("é\n") == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert pieces("12") == ["▁", "1", "2"]
    assert pieces("a  a") == ["▁a", "▁", "▁a"]


@pytest.mark.parametrize("words", [V1_SYSTEM, "USER:", "ASSISTANT:", *chain(*CELL_NAMES), *QUESTION_WORDS])
def test_words_of_the_demo_are_single_pieces(words: str) -> None:
    assert pieces(words) == ["▁" + words.replace(" ", "▁")]


def test_words_stay_single_pieces_inside_a_prompt() -> None:
    assert pieces("USER: what digit is top-left? ASSISTANT: none") == [
        *("▁USER:", "▁what", "▁digit", "▁is", "▁top-left", "?", "▁ASSISTANT:", "▁none")
    ]


@given(st.text().filter(lambda text: not any(token in text for token in ("<s>", "</s>", "<unk>", "▁"))))
def test_any_text_survives_the_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_supervised_tokens_are_the_answers_and_their_ends() -> None:
    for turns, with_image in conversations(3, 200):
        tokenized = tokenize_conversation(turns, template="v1", num_images=with_image, tokenizer=TOKENIZER)
        supervised = [TOKENIZER.piece(token) for token in tokenized.labels if token >= 0]
        answers = [turn.value for turn in turns if turn.speaker == "gpt"]
        assert "".join(supervised) == "".join(f"▁{answer}</s>" for answer in answers)


def test_six_turns_stay_within_75_text_tokens() -> None:
    lengths = [
        len(tokenize_conversation(turns, template="v1", num_images=True, tokenizer=TOKENIZER).input_ids) - 1
        for turns, with_image in conversations(1, 600)
        if with_image and len(turns) == 12
    ]
    assert len(lengths) > 50
    assert np.mean(lengths) < 75
    assert max(lengths) <= 85


@pytest.mark.parametrize("vocab_size", [200, 5000])
def test_impossible_vocabulary_is_one_line_and_writes_nothing(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(InputError, match=rf"tiny\.model: .*vocab_size {vocab_size}") as caught:
        train_tokenizer(["what digit is top-left"], tmp_path / "tiny.model", vocab_size)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiny.model").exists()
