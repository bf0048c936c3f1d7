"""Token ids: those of transformers 4.33.1 on stored texts, those of a twin on any text; what a folder may ask for."""

import io
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import PROBE_TEXTS, LegacyLlamaTokenizer

MODEL = Path(__file__).parents[4] / "golden" / "mobilevlm_v2_tiny" / "teacher" / "tokenizer.model"
PIECES = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
PLAIN_MAP = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
STRIPPING_MAP = {
    "bos_token": {"content": "<s>", "lstrip": True, "rstrip": False},
    "eos_token": {"content": "</s>", "lstrip": False, "rstrip": True},
}

FolderMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> FolderMaker:
    """Makes folders with the golden tokenizer.model and the JSON files given by name."""

    def make(model: bytes | None = None, **files: Any) -> Path:
        folder = tmp_path_factory.mktemp("tokenizer")
        (folder / "tokenizer.model").write_bytes(MODEL.read_bytes() if model is None else model)
        for name, value in files.items():
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
        return folder / "tokenizer.model"

    return make


TEXTS = [
    "",
    "  ",
    "Hello world",
    "a</s>USER: b",
    "a </s> b",
    "\n<s> x",
    "x <unk>\ty",
    " </s></s> ",
    "\u4e2d \U0001f600</s> 12",
]
HELLO = [1, 431, 477, 432, 354, 434, 279, 272, 443, 442]
BLANKS = [1, 431, 431, 431]
USER = [475, 459, 458, 464, 493, 296]
EMOJI = [1, 431, 231, 187, 176, 431, 243, 162, 155, 131, 2]
# Ids by transformers 4.33.1's LlamaTokenizer for the golden model, pad_token set to unk_token as the original does.
ORIGINAL: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "legacy": (
        {},
        [
            *([1], BLANKS, HELLO, [1, 261, 2, 431, *USER], [1, 261, 431, 2, 431, 296], [1, 431, 13, 1, 431, 431, 471]),
            *([1, 431, 471, 431, 0, 431, 12, 448], [1, 431, 431, 2, 2, 431, 431], [*EMOJI, 431, 431, 481, 484]),
        ],
    ),
    "legacy false": (
        {"tokenizer_config": {"legacy": False}},
        [
            *([1], BLANKS, HELLO, [1, 261, 2, *USER], [1, 261, 431, 2, 296], [1, 431, 13, 1, 431, 471]),
            *([1, 431, 471, 431, 0, 12, 448], [1, 431, 431, 2, 2, 431], [*EMOJI, 431, 481, 484]),
        ],
    ),
    "bare strings in the map": (
        {"special_tokens_map": PLAIN_MAP},
        [
            *([1], BLANKS, HELLO, [1, 261, 2, 431, *USER], [1, 261, 2, 296], [1, 1, 431, 471]),
            *([1, 431, 471, 0, 309], [1, 2, 2], [*EMOJI, 431, 481, 484]),
        ],
    ),
    "stripping tokens in the map": (
        {"special_tokens_map": STRIPPING_MAP},
        [
            *([1], BLANKS, HELLO, [1, 261, 2, 431, *USER], [1, 261, 431, 2, 296], [1, 1, 431, 431, 471]),
            *([1, 431, 471, 431, 0, 431, 12, 448], [1, 431, 431, 2, 2], [*EMOJI, 431, 481, 484]),
        ],
    ),
    "one bare string in the map": (
        {"special_tokens_map": {"bos_token": "<s>"}},
        [
            *([1], BLANKS, HELLO, [1, 261, 2, 431, *USER], [1, 261, 431, 2, 431, 296], [1, 1, 431, 471]),
            *([1, 431, 471, 431, 0, 431, 12, 448], [1, 431, 431, 2, 2, 431, 431], [*EMOJI, 431, 431, 481, 484]),
        ],
    ),
}


@pytest.mark.parametrize("case", ORIGINAL)
def test_ids_are_those_of_the_original_library(tokenizer_folder: FolderMaker, case: str) -> None:
    files, expected = ORIGINAL[case]
    tokenizer = LegacyLlamaTokenizer(tokenizer_folder(**files))
    assert [tokenizer.encode(text) for text in TEXTS] == expected


def test_bare_strings_in_the_config_and_missing_files_change_nothing(tokenizer_folder: FolderMaker) -> None:
    usual = LegacyLlamaTokenizer(MODEL)
    for files in ({}, {"tokenizer_config": {**PLAIN_MAP, "legacy": None, "pad_token": None}}, {"tokenizer": {}}):
        other = LegacyLlamaTokenizer(tokenizer_folder(**files))
        assert other.rules == usual.rules and other.fingerprint == usual.fingerprint


def twin(text: str, *, stripping: bool) -> list[int]:
    """The slow tokenizer's steps: cut at special tokens, strip their neighbours, pieces as texts, texts as ids."""
    cut, rest = [], text
    while found := re.search("<unk>|</?s>", rest):
        cut += [rest[: found.start()], found.group()]
        rest = rest[found.end() :]
    cut.append(rest)
    special = range(1, len(cut), 2)
    for place in special if stripping else ():
        cut[place + 1] = cut[place + 1].lstrip()
        cut[place - 1] = cut[place - 1].rstrip()
    pieces = ["<s>"]
    for place, part in enumerate(cut):
        pieces += [part] if place in special else PIECES.encode(part, out_type=str)
    return [PIECES.piece_to_id(piece) for piece in pieces]


parts = st.sampled_from(
    ["</s>", "<s>", "<unk>", "<", "/s>", "<0x41>", " ", "  ", "\n", "\t", "\u2581", "\u3000", "\u00a0", "\ufeff", "\0"]
)
any_text = st.lists(parts | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=9).map("".join)


@pytest.fixture(scope="module")
def stripping(tokenizer_folder: FolderMaker) -> LegacyLlamaTokenizer:
    return LegacyLlamaTokenizer(tokenizer_folder(special_tokens_map=PLAIN_MAP))


@given(any_text)
def test_ids_equal_the_twin(stripping: LegacyLlamaTokenizer, text: str) -> None:
    assert LegacyLlamaTokenizer(MODEL).encode(text) == twin(text, stripping=False)
    assert stripping.encode(text) == twin(text, stripping=True)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda text: "<" not in text))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = LegacyLlamaTokenizer(MODEL)
    # A blank is how the model writes U+2581: the only character that it cannot tell from another.
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


def test_a_very_long_text_is_its_parts() -> None:
    tokenizer = LegacyLlamaTokenizer(MODEL)
    once = tokenizer.encode(" a cup", add_bos=False)
    assert tokenizer.encode(" a cup</s>" * 20_000, add_bos=False) == [*once, 2] * 20_000


def test_half_a_surrogate_pair_is_one_samples_problem() -> None:
    with pytest.raises(SampleError, match=r"'\\ud83d', half of a surrogate pair"):
        LegacyLlamaTokenizer(MODEL).encode("a cup \ud83d on a table")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer_config": {"add_bos_token": False}}, "add_bos_token is False, MobileVLM was trained with True"),
    ({"tokenizer_config": {"add_bos_token": None}}, "add_bos_token is None, MobileVLM was trained with True"),
    ({"tokenizer_config": {"add_eos_token": True}}, "add_eos_token is True, MobileVLM was trained with False"),
    ({"tokenizer_config": {"split_special_tokens": True}}, "split_special_tokens is True"),
    ({"tokenizer_config": {"sp_model_kwargs": {"enable_sampling": True}}}, "sp_model_kwargs is .*enable_sampling"),
    ({"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer"}}, "tokenizer_class is 'GPT2Tokenizer', only Llama"),
    ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, r"eos_token is '<\|im_end\|>', expected '</s>'"),
    ({"special_tokens_map": {"bos_token": {"content": ""}}}, "bos_token is '', expected '<s>'"),
    ({"tokenizer_config": {"pad_token": "[PAD]"}}, r"adds '\[PAD\]' to the vocabulary"),
    ({"special_tokens_map": {"pad_token": {"content": "<pad>"}}}, "adds '<pad>' to the vocabulary"),
    ({"special_tokens_map": {"additional_special_tokens": ["<im_start>"]}}, "adds '<im_start>' to the vocabulary"),
    ({"added_tokens": {"<im_patch>": 512, "<im_end>": 513}}, "adds '<im_patch>', '<im_end>' to the vocabulary"),
    ({"tokenizer_config": {"added_tokens_decoder": {"512": {"content": "<image>"}}}}, "adds '<image>' to the voc"),
    ({"tokenizer_config": "{broken"}, "cannot be read as JSON .*copy the file again"),
    ({"special_tokens_map": [1]}, "a JSON list, expected an object"),
]


@pytest.mark.parametrize(("files", "message"), REFUSED)
def test_folders_that_ask_for_other_ids_are_refused(
    tokenizer_folder: FolderMaker, files: dict[str, Any], message: str
) -> None:
    model = tokenizer_folder(**files)
    with pytest.raises(InputError, match=message) as error:
        LegacyLlamaTokenizer(model)
    assert f"{next(iter(files))}.json" in str(error.value) and "\n" not in str(error.value)


def test_tokens_that_the_model_has_already_are_no_additions(tokenizer_folder: FolderMaker) -> None:
    decoder = {str(number): {"content": token} for number, token in enumerate(("<unk>", "<s>", "</s>"))}
    files = {
        "tokenizer_config": {"added_tokens_decoder": decoder, "pad_token": "</s>", "additional_special_tokens": []},
        "added_tokens": {"</s>": 2},
        "special_tokens_map": {"pad_token": "<unk>"},
    }
    assert LegacyLlamaTokenizer(tokenizer_folder(**files)).encode(" </s> ") == LegacyLlamaTokenizer(MODEL).encode(
        " </s> "
    )


def test_a_folder_with_the_fast_tokenizer_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.model: no such file; a checkpoint needs"):
        LegacyLlamaTokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"only tokenizer\.json, .*add the tokenizer\.model"):
        LegacyLlamaTokenizer(tmp_path / "tokenizer.model")


def test_a_model_that_is_none(tokenizer_folder: FolderMaker) -> None:
    with pytest.raises(InputError, match="not a sentencepiece model"):
        LegacyLlamaTokenizer(tokenizer_folder(model=b"<html>not found</html>"))


@pytest.mark.parametrize("options", [{"bos_id": -1}, {"eos_id": -1}, {"bos_piece": "[BOS]"}])
def test_models_without_llamas_special_tokens_are_refused(
    tokenizer_folder: FolderMaker, options: dict[str, Any]
) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cup on a table", "a spoon in a cup"]),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    with pytest.raises(InputError, match="LLaMA's model has it once"):
        LegacyLlamaTokenizer(tokenizer_folder(model=model.getvalue()))


def test_unusual_rules_show_in_the_fingerprint(tokenizer_folder: FolderMaker) -> None:
    usual = LegacyLlamaTokenizer(MODEL).fingerprint
    found = [LegacyLlamaTokenizer(tokenizer_folder(**files)).fingerprint for files, _ in ORIGINAL.values()]
    assert re.fullmatch("[0-9a-f]{64}", usual)
    assert found == [
        usual,
        f"legacy=false {usual}",
        f"lstrip=</s>,<s>,<unk> rstrip=</s>,<s>,<unk> {usual}",
        f"lstrip=<s> rstrip=</s> {usual}",
        f"lstrip=<s> rstrip=<s> {usual}",
    ]


def test_a_probe_survives_json_and_tells_rules_and_models_apart(tokenizer_folder: FolderMaker) -> None:
    tokenizer = LegacyLlamaTokenizer(MODEL)
    stored = json.loads(json.dumps(tokenizer.probe_ids()))
    assert tuple(stored) == PROBE_TEXTS
    tokenizer.check_probe(stored, "manifest.json")
    demo = Path(__file__).parents[5] / "pipeline" / "demo" / "assets" / "tokenizer.model"
    others = [LegacyLlamaTokenizer(demo)]
    others += [LegacyLlamaTokenizer(tokenizer_folder(**files)) for files, _ in list(ORIGINAL.values())[1:]]
    for other in others:
        with pytest.raises(
            InputError, match=r"tokenizer\.model: '.*' becomes \[.*\] .*, but \[.*\] .* in manifest\.json; use"
        ):
            other.check_probe(stored, "manifest.json")


@given(st.sampled_from(PROBE_TEXTS[:-1]), st.data())
def test_a_probe_notices_one_changed_id(text: str, data: st.DataObject) -> None:
    tokenizer = LegacyLlamaTokenizer(MODEL)
    stored = tokenizer.probe_ids()
    place = data.draw(st.integers(0, len(stored[text]) - 1))
    was, stored[text][place] = stored[text][place], 511
    with pytest.raises(InputError, match=rf"\b{was}\b.* but \[.*\b511\b.*in the store"):
        tokenizer.check_probe(stored, "the store")


def field(number: int, payload: bytes) -> bytes:
    """A field of bytes, as protocol buffers serialise it."""
    size, varint = len(payload), b""
    while size > 127:
        varint, size = varint + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + varint + bytes([size]) + payload


def llama_sized_pieces() -> bytes:
    """32000 pieces of a serialised unigram model, LLaMA's `Hello` and `world` at their places."""
    named = {0: ("<unk>", 2), 1: ("<s>", 3), 2: ("</s>", 3), 15043: ("\u2581Hello", 1), 3186: ("\u2581world", 1)}
    pieces = (named.get(number, (f"unused{number}", 1)) for number in range(32000))
    score = b"\x15" + struct.pack("<f", -1.0)
    return b"".join(field(1, field(1, text.encode()) + score + bytes([0x18, kind])) for text, kind in pieces)


def test_llamas_vocabulary_must_encode_as_llamas(tokenizer_folder: FolderMaker) -> None:
    with_prefix, without = (
        llama_sized_pieces() + field(3, field(1, b"identity") + bytes([0x18, prefix])) for prefix in (True, False)
    )
    tokenizer = LegacyLlamaTokenizer(tokenizer_folder(model=with_prefix))
    assert tokenizer.encode("Hello world") == [1, 15043, 3186]
    with pytest.raises(InputError, match=r"makes 'Hello world' \[.*\], LLaMA \[1, 15043, 3186\]"):
        LegacyLlamaTokenizer(tokenizer_folder(model=without))


def test_the_golden_checkpoints_have_the_usual_rules(golden: Path, tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "tokenizer.model")
    bare = LegacyLlamaTokenizer(tmp_path / "tokenizer.model")
    for name in ("teacher", "student"):
        assert LegacyLlamaTokenizer(golden / name / "tokenizer.model").fingerprint == bare.fingerprint
