"""Conversations, images and checkpoints that are refused, each with one line, and what is remarked on."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hard_conversations import picture, picture_of
from PIL import Image

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import ImageError, InputError, SampleError
from alignkd.vlm.families.huggingface.inputs import processor as processor_module
from alignkd.vlm.families.huggingface.inputs.opening import open_preparation
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation
from alignkd.vlm.inputs.examples import OverlongError

FolderOf = Callable[[str], Path]
Opened = Callable[[str], HuggingFacePreparation]


def turns(*texts: str) -> list[Turn]:
    return [Turn(("human", "gpt")[number % 2], text) for number, text in enumerate(texts)]


REFUSED: dict[str, tuple[list[Turn], int, str]] = {
    "nothing": ([], 0, "empty conversation; give at least one human and one gpt turn"),
    "no answer": (turns("what?"), 0, "no gpt turn, so no token would be trained"),
    "empty answer": (turns("what?", "a", "and?", " \n"), 0, "turn 3 is an empty answer"),
    "late system turn": (
        [*turns("what?", "a"), Turn("system", "be brief")],
        0,
        "turn 2 is a system prompt; it may only",
    ),
    "other name": ([Turn("user", "what?"), Turn("gpt", "a")], 0, "unknown speaker 'user', expected 'human', 'gpt' or"),
    "masked": (
        [Turn("human", "what?"), Turn("gpt", "a", False)],
        0,
        "nothing would be trained: every answer is masked",
    ),
    "too few <image>": (
        turns("what?", "a"),
        1,
        "0 <image> in the conversation but 1 image; write <image> exactly once",
    ),
    "too many <image>": (turns("<image> <image>", "a"), 1, "2 <image> in the conversation but 1 image"),
    "<image> in an answer": (turns("what?", "a <image>"), 1, "<image> is in turn 1, which is from 'gpt'; move it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_conversations(name: str, opened: Opened) -> None:
    conversation, images, message = REFUSED[name]
    with pytest.raises(SampleError, match=message.replace("(", r"\(")) as tokenized:
        opened("qwen2_5_vl").tokenize(conversation, [(40, 40)] * images)
    with pytest.raises(SampleError) as built:
        opened("qwen2_5_vl").build(conversation, [picture(0)] * images)
    assert str(tokenized.value) == str(built.value) and "\n" not in str(built.value)


CONTROL = {
    "llava": ["</s>", "<s>"],
    "llava_onevision": ["<|im_end|>", "<|im_start|>", "<video>"],
    "qwen2_5_vl": ["<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>"],
    "gemma3": ["<end_of_turn>", "<image_soft_token>", "<start_of_image>", "<bos>"],
    "smolvlm": ["<end_of_utterance>", "<fake_token_around_image>", "<row_1_col_1>"],
    "internvl": ["<IMG_CONTEXT>", "<img>", "</img>"],
    "mistral3": ["[INST]", "[IMG]", "[IMG_BREAK]", "</s>"],
}


@pytest.mark.parametrize(("family", "text"), [(family, text) for family, texts in CONTROL.items() for text in texts])
def test_control_tokens_in_the_data(family: str, text: str, opened: Opened) -> None:
    for number, conversation in enumerate([turns(f"is {text} here?", "no"), turns("is it here?", f"no {text}yes")]):
        with pytest.raises(SampleError, match=f"turn {number} holds .* which this model reads as a control token"):
            opened(family).tokenize(conversation, [])
    # text parts on both sides of an image, which the template joins
    cut = f"{text[:3]}<image>{text[3:]}"
    with pytest.raises(SampleError, match="turn 0 holds"):
        opened(family).tokenize(turns(cut, "no"), [(40, 40)])


def test_tokens_that_were_added_as_text_may_be_in_the_data(opened: Opened) -> None:
    added = opened("qwen2_5_vl").loaded.tokenizer.added_tokens_decoder.values()
    plain = [token.content for token in added if not token.special]
    assert plain
    for text in plain:
        tokens = opened("qwen2_5_vl").tokenize(turns("call it", f"so {text} then"), [])
        assert any(text in piece and is_supervised for piece, is_supervised in opened("qwen2_5_vl").marked(tokens))


def test_a_template_that_refuses_the_order_of_turns(opened: Opened) -> None:
    with pytest.raises(SampleError, match=r"the chat template refuses the conversation .*must alternate"):
        opened("gemma3").tokenize([Turn("human", "one"), Turn("human", "two"), Turn("gpt", "three")], [])


def test_a_question_ends_with_the_human(opened: Opened) -> None:
    with pytest.raises(SampleError, match="the last turn is from 'gpt'"):
        opened("qwen3_vl").build_question(turns("what?", "a"), [])


def test_samples_that_are_too_long(folder_of: FolderOf) -> None:
    preparation = open_preparation(folder_of("qwen3_vl"), max_tokens=60)
    length = preparation.tokenize(turns("<image>", "a"), [(100, 60)]).positions.length
    assert length > 60
    with pytest.raises(OverlongError, match=f"{length} tokens, more than max_tokens 60; dropped"):
        preparation.build(turns("<image>", "a"), [picture(0)])
    assert preparation.build(turns("q", "a"), []).positions.length <= 60


def test_broken_images_are_named_by_number(opened: Opened) -> None:
    with pytest.raises(ImageError, match=r"^image 2 of 2: not an image file"):
        opened("qwen3_vl").build(turns("<image><image>", "a"), [picture(0), b"no image"])
    with pytest.raises(ImageError, match=r"^broken image"):
        opened("qwen3_vl").build(turns("<image>", "a"), [picture(0)[:-2000]])


def test_images_that_the_processor_refuses(opened: Opened) -> None:
    message = "the image processor refuses an image of 3000 x 10 pixels .*aspect ratio"
    with pytest.raises(ImageError, match=message):
        opened("qwen3_vl").tokenize(turns("<image>", "a"), [(3000, 10)])
    with pytest.raises(ImageError, match=message):
        opened("qwen3_vl").build(turns("<image>", "a"), [picture_of((3000, 10))])
    with pytest.raises(ImageError, match=message):
        opened("qwen3_vl").check_image(Image.new("RGB", (3000, 10)))


def test_grey_values_that_8_bits_cannot_hold(opened: Opened) -> None:
    stream = io.BytesIO()
    Image.new("I;16", (30, 30), 40000).save(stream, "PNG")
    with pytest.raises(ImageError, match="save the image with 8 bits per channel"):
        opened("gemma3").build(turns("<image>", "a"), [stream.getvalue()])


REMARKS = {
    "llava": ["no end-of-turn token follows an answer", "all images of a turn come before its text"],
    "llava_next": ["all images of a turn come before its text"],
    "llava_onevision": ["is not how the same turn begins in training", "all images of a turn come before its text"],
    "qwen2_5_vl": [],
    "qwen3_5": ["is not how the same turn begins in training"],
    "gemma3": [],
    "smolvlm": [],
    "mistral3": [],
}


@pytest.mark.parametrize("family", REMARKS)
def test_remarks_on_the_chat_template(family: str, opened: Opened) -> None:
    found = opened(family).warnings()
    assert len(found) == len(REMARKS[family])
    assert all(
        part in line and line.startswith("chat template: ") for part, line in zip(REMARKS[family], found, strict=True)
    )


@pytest.fixture
def copied(folder_of: FolderOf, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that a test may change."""
    return lambda family: Path(shutil.copytree(folder_of(family), tmp_path / family))


def test_a_template_that_changes_an_answer_or_leaves_it_out(copied: Callable[[str], Path], opened: Opened) -> None:
    with pytest.raises(SampleError, match="turn 1 holds '<think>'"):  # Qwen3.5 keeps thoughts of the last turn only
        opened("qwen3_5").tokenize(turns("what?", "<think>\nhm\n</think>\n\na cat", "and?", "a dog"), [])
    folder = copied("qwen3_vl")
    file = folder / "chat_template.jinja"
    whole = file.read_text()
    file.write_text(whole.replace("part['text']", "(part['text'] | replace('cat', 'dog'))"))
    preparation = open_preparation(folder)
    assert preparation.tokenize(turns("what?", "a bird"), []).positions.supervised_positions.size
    with pytest.raises(SampleError, match=r"changes answer 1 \('a cat'\) or the text around it"):
        preparation.tokenize(turns("what?", "a cat"), [])
    file.write_text("{%- if messages | length > 4 -%}{%- set messages = messages[2:] -%}{%- endif -%}" + whole)
    with pytest.raises(SampleError, match="does not write every answer once and in order"):
        open_preparation(folder).tokenize(turns("what?", "a", "and?", "b", "so?", "c"), [])


SYSTEM = [Turn("system", "be brief"), *turns("what?", "a cat")]


def test_a_template_that_refuses_or_loses_a_system_prompt(copied: Callable[[str], Path]) -> None:
    folder = copied("qwen3_vl")
    file = folder / "chat_template.jinja"
    whole = file.read_text()
    refuses = "{%- if messages[0].role == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}"
    loses = "{%- if messages[0].role == 'system' -%}{%- set messages = messages[1:] -%}{%- endif -%}"
    for before in (refuses, loses):
        file.write_text(before + whole)
        preparation = open_preparation(folder)
        with pytest.raises(SampleError, match="the chat template has no place for a system prompt; remove it from the"):
            preparation.tokenize(SYSTEM, [])
        assert preparation.tokenize(SYSTEM[1:], []).positions.supervised_positions.size
    file.write_text(whole.replace("part['text']", "(part['text'] | replace('brief', 'short'))"))
    with pytest.raises(
        SampleError, match=r"the chat template changes the system prompt \('be brief'\); remove it from"
    ):
        open_preparation(folder).tokenize(SYSTEM, [])


def test_a_template_that_takes_a_system_prompt_as_a_text_alone(copied: Callable[[str], Path]) -> None:
    folder = copied("qwen3_vl")
    file = folder / "chat_template.jinja"
    wanted = open_preparation(folder).tokenize(SYSTEM, [])
    text = "{%- if messages[0].role == 'system' -%}{{- '<|im_start|>system\n' + (messages[0].content | string) }}"
    text += "{{- '<|im_end|>\n' -}}{%- set messages = messages[1:] -%}{%- endif -%}"
    file.write_text(text + file.read_text())
    found = open_preparation(folder).tokenize(SYSTEM, [])
    assert found.input_ids.tolist() == wanted.input_ids.tolist() and found.labels.tolist() == wanted.labels.tolist()


def test_a_template_with_the_date_has_the_same_tokens_every_day(copied: Callable[[str], Path]) -> None:
    folder = copied("qwen3_vl")
    file = folder / "chat_template.jinja"
    file.write_text("{{- 'Today is ' + strftime_now('%d %B %Y') + '. ' -}}" + file.read_text())
    preparation = open_preparation(folder)
    assert preparation.marked(preparation.tokenize(turns("q", "a"), []))[0][0].startswith(
        "Today is 01 January 2025. <|im_s"
    )
    assert preparation.warnings() == ["chat template: it writes today's date; 2025-01-01 is used every day"]
    file.write_text("{%- set form = '%d' -%}{{- strftime_now(form) -}}" + file.read_text())
    with pytest.raises(InputError, match="its chat template computes with today's date"):
        open_preparation(folder)


def test_a_template_that_asks_whether_it_can_know_the_date(copied: Callable[[str], Path]) -> None:
    """As Llama 3 does it, with another date where there is no such function."""
    folder = copied("qwen3_vl")
    file = folder / "chat_template.jinja"
    date = "{{- strftime_now('%d %b %Y') if strftime_now is defined else 'some day' -}}"
    file.write_text(date + file.read_text())
    preparation = open_preparation(folder)
    assert preparation.marked(preparation.tokenize(turns("q", "a"), []))[0][0].startswith("01 Jan 2025<|im_s")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_files_that_are_broken_are_named(copied: Callable[[str], Path], name: str) -> None:
    folder = copied("qwen3_vl")
    for content, found in (("{", "cannot be read as JSON"), ("[]", "a JSON list, expected an object")):
        (folder / name).write_text(content)
        with pytest.raises(InputError, match=rf"{name}: {found}"):
            open_preparation(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_files_that_are_missing_are_named(copied: Callable[[str], Path], name: str) -> None:
    folder = copied("qwen3_vl")
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"has none of .*{name}.*; copy that file of the checkpoint too"):
        open_preparation(folder)


def test_without_torchvision(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_module, "_has_torchvision", lambda: False)
    with pytest.raises(
        InputError, match=r"needs torchvision.*pip install 'alignkd\[families\]', or set processor: pil"
    ):
        open_preparation(folder_of("qwen3_vl"))


def test_without_another_package(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Package `num2words` is required to run SmolVLM processor.")

    monkeypatch.setattr(processor_module.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(InputError, match=r"needs a package that is missing \(Package `num2words`.*alignkd\[families\]"):
        open_preparation(folder_of("smolvlm"))


def test_checkpoints_that_are_refused(copied: Callable[[str], Path], folder_of: FolderOf) -> None:
    with pytest.raises(InputError, match="PaliGemmaProcessor has no chat template"):
        open_preparation(folder_of("paligemma"))
    folder = copied("qwen3_vl")
    template = folder / "chat_template.jinja"
    whole = template.read_text()
    template.write_text("{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="has no place for the images of a message"):
        open_preparation(folder)
    template.write_text("{{- raise_exception('never') -}}")
    with pytest.raises(InputError, match=r"a plain question .*the chat template refuses the conversation \(never\)"):
        open_preparation(folder)
    template.unlink()
    with pytest.raises(InputError, match="has no chat template"):
        open_preparation(folder)
    template.write_text(whole)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"generation_config.json: a JSON list, expected an object"):
        open_preparation(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json: cannot be read as JSON"):
        open_preparation(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"has no tokenizer \(\w+ without entries\); copy tokenizer.json"):
        open_preparation(folder)


def test_stop_tokens_are_those_of_the_generation_config_too(copied: Callable[[str], Path]) -> None:
    folder = copied("qwen3_vl")
    file = folder / "generation_config.json"
    before = open_preparation(folder).stop_ids
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [7, *sorted(before)]}))
    assert open_preparation(folder).stop_ids == before | {7}
    file.unlink()
    assert open_preparation(folder).stop_ids <= before
