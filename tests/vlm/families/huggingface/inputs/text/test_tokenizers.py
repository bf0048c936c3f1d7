"""Characters of tokens for other kinds of tokenizers than the tiny families have."""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.huggingface.inputs.text.chat import Answer
from alignkd.vlm.families.huggingface.inputs.text.labels import labels_of
from alignkd.vlm.families.huggingface.inputs.text.text_tokens import FastTokenizer
from alignkd.vlm.inputs.labels import IGNORE_LABEL

WORDS = ["the cat is black and the dog is brown", "how many birds? two birds.\n\nyes", "model user assistant"]
STOP = "<end>"
ANSWERS = [
    "the cat",
    "  \t  ",
    "   a   ",
    " the cat\n",
    "\n\ntwo birds.\n\n",
    "今天 🙂\te\u0301",
    "é",
    ")\n\n",
    "a",
    "...\n  b",
]


def byte_level(*, trim: bool) -> Tokenizer:
    """As Llama 3's and Qwen's files: `trim_offsets` is true in some, inside a sequence in others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.decoder = decoders.ByteLevel()
    level = processors.ByteLevel(trim_offsets=trim)
    tokenizer.add_special_tokens([AddedToken("<bos>"), AddedToken(STOP)])
    begin = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))])
    tokenizer.post_processor = processors.Sequence([level, begin]) if trim else level
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """As Gemma's and Mistral's files: U+2581 for spaces, bytes as `<0x0A>`."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({letter for text in WORDS for letter in text.replace(" ", "\u2581")} - {"\n"})
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<bos>", STOP, *tokens, *letters, "\n\n"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<bos>"), AddedToken(STOP)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return tokenizer


KINDS = {
    "byte level": lambda: byte_level(trim=False),
    "byte level, trimmed": lambda: byte_level(trim=True),
    "sentencepiece": sentencepiece_like,
}


def fast(tokenizer: Tokenizer) -> FastTokenizer:
    return FastTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token=STOP))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_labels_are_the_tokens_of_the_answer(kind: str, answer: str) -> None:
    tokenizer = fast(KINDS[kind]())
    before, after = "user\nthe cat<end>\nmodel\n", "<end>\nuser\n"
    tokens = tokenizer(before + answer + after)
    stop = {tokenizer.tokenizer.convert_tokens_to_ids(STOP)}
    labels = labels_of(tokens, [Answer(len(before), len(before + answer), answer)], stop_ids=stop, tokenizer=tokenizer)
    places = np.flatnonzero(labels != IGNORE_LABEL)
    assert (np.diff(places) == 1).all() and labels[places].tolist() == tokens.ids[places].tolist()
    assert int(tokens.ids[places[-1]]) in stop
    # tokens of the text before and after, each alone, are the unsupervised ones, but for merged line breaks
    normalizer = tokenizer.tokenizer.backend_tokenizer.normalizer
    read = tokenizer.text(tokens.ids[places]).replace("\u2581", " ")
    assert read.endswith(STOP)
    wanted = normalizer.normalize_str(answer).replace("\u2581", " ")
    assert read.removesuffix(STOP).endswith(wanted)
    assert read.removesuffix(STOP).removesuffix(wanted).strip() == ""


def test_spaces_are_characters_of_their_token() -> None:
    trimmed = byte_level(trim=True)
    text = "a   b the cat"
    found = trimmed.encode(text)
    assert any(start == end for start, end in found.offsets[1:])  # what the tokenizer's file asks for
    tokens = fast(trimmed)(text)
    assert tokens.ids.tolist() == found.ids
    assert (tokens.ends[1:] > tokens.starts[1:]).all() and tokens.starts[2:].tolist() == tokens.ends[1:-1].tolist()


def test_one_beginning_of_text() -> None:
    tokenizer = fast(sentencepiece_like())
    assert tokenizer("<bos>the").ids.tolist() == tokenizer("the").ids.tolist()
    assert tokenizer.plain("the") == tokenizer("the").ids.tolist()[1:]


def test_characters_that_are_not_in_the_vocabulary() -> None:
    description = json.loads(sentencepiece_like().to_str())
    description["model"]["byte_fallback"] = False
    tokenizer = fast(Tokenizer.from_str(json.dumps(description)))
    tokens = tokenizer("the 今天<end>")
    with pytest.raises(SampleError, match=r"read .*<unk>.*; remove characters that are not in the vocabulary"):
        labels_of(tokens, [Answer(4, 6, "今天")], stop_ids=frozenset(), tokenizer=tokenizer)


def test_an_answer_that_runs_into_the_text_after_it() -> None:
    tokenizer = fast(byte_level(trim=False))
    tokens = tokenizer("the dog is")
    start, end = int(tokens.starts[-1]), int(tokens.ends[-1])
    assert end - start > 2
    with pytest.raises(SampleError, match="those that run into the text after the answer"):
        labels_of(tokens, [Answer(start, end - 1, " i")], stop_ids=frozenset(), tokenizer=tokenizer)
