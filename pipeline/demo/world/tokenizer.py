"""Trains the demo's sentencepiece model, a small copy of LLaMA's: byte-pair merges, byte fallback, no normalisation.

`python -m alignkd.pipeline.demo.world.tokenizer` rebuilds `assets/tokenizer.model`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.demo.world.questions import (
    SCENE_QUESTION_TYPES,
    TEXT_QUESTION_TYPES,
    Question,
    ask_scene,
    ask_text,
)
from alignkd.pipeline.demo.world.scenes import make_scene
from alignkd.vlm.data.turns import V1_SYSTEM
from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.mobilevlm.inputs.templates import ROLE_NAMES

TOKENIZER_MODEL = Path(__file__).parents[1] / "assets" / "tokenizer.model"
VOCAB_SIZE = 404
TEMPLATE_WORDS = (V1_SYSTEM, *(f"{role}:" for role in ROLE_NAMES.values()))
"""One piece each: they start every prompt and every turn, and would otherwise take half of a sequence."""
_SPACE = "\u2581"
_PUNCTUATION = "?,"  # no character is special inside [] of a regular expression
_CORPUS_SEED = 2024
_CORPUS_SCENES = 1000


def train_tokenizer(corpus: Iterable[str], out: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Train a sentencepiece model on `corpus` and write it; the same corpus gives the same bytes.

    Args:
        corpus: text segments without special tokens.
        out: path of the model file.
        vocab_size: number of all pieces, including the 256 byte pieces and unk, bos, eos (ids 0, 1, 2).

    Raises:
        InputError: the corpus is too poor, or has too many characters, for `vocab_size`.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            split_digits=True,
            # Hyphens and letters are different scripts: otherwise a cell's name would never become one piece.
            split_by_unicode_script=False,
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=16,
            user_defined_symbols=[_SPACE + words.replace(" ", _SPACE) for words in TEMPLATE_WORDS],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            unk_piece="<unk>",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(f"{out}: sentencepiece refused vocab_size {vocab_size}: {one_line(error)}") from error
    write_whole(out, model.getvalue())


def demo_corpus() -> Iterator[str]:
    """The training texts: questions and answers of every type, equally often; template words are not needed.

    Texts are split at punctuation: otherwise merges such as "t?" would prevent "top-left" from becoming one piece.
    """
    yield from _PUNCTUATION
    for question in _questions_of_every_type():
        yield from filter(None, map(str.strip, re.split(f"[{_PUNCTUATION}]", question.text)))
        yield question.answer


def _questions_of_every_type() -> Iterator[Question]:
    rng = np.random.default_rng(_CORPUS_SEED)
    for number in range(_CORPUS_SCENES):
        scene = make_scene(_CORPUS_SEED, number, "train")
        yield from (ask_scene(question_type, scene, rng) for question_type in SCENE_QUESTION_TYPES)
        yield from (ask_text(question_type, rng) for question_type in TEXT_QUESTION_TYPES)


def main() -> None:
    """Rebuild the shipped model."""
    train_tokenizer(demo_corpus(), TOKENIZER_MODEL)
    print(f"wrote {TOKENIZER_MODEL} ({VOCAB_SIZE} pieces)")


if __name__ == "__main__":
    main()
