"""Keys that other programs act on are refused by name; keys that ask for nothing are no fault; the rest is counted."""

from typing import Any

import pytest

from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.keys import keys_not_read
from alignkd.vlm.data.entries.media_marks import marks_in
from alignkd.vlm.data.turns import Turn

HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}
TEXT: dict[str, Any] = {"id": "a", "conversations": [HUMAN, GPT]}


def problem_of(entry: dict[str, Any]) -> str:
    problem = sample_of_entry(0, entry).problem or ""
    assert "\n" not in problem and len(problem) < 300
    return problem


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"image_path": "a.png"},
            "key 'image_path' is not read; in other programs it names an image; put its path under 'imag",
        ),
        ({"img": ["a.png"]}, "names an image"),
        ({"Image": "a.png"}, "key 'Image' is not read; in other programs it names an image"),
        ({"image-url": "https://x/a.png", "image": None}, "names an image"),
        ({"video": "a.mp4"}, "key 'video' is not read; in other programs it names a video"),
        ({"imageUrl": "https://x/a.png"}, "key 'imageUrl' is not read; in other programs it names an image"),
        ({"file_name": "a.PNG"}, "names an image"),
        ({"imageId": 12}, "key 'imageId' (12) is not read; in other programs it names an image"),
        ({"image_name": "a"}, "names an image"),
        ({"screenshot": "a.png"}, "names an image"),
        ({"frames": ["a.png"]}, "names frames of a video"),
        ({"videos": ["a.mp4"], "image": "a.png"}, "names a video"),
        ({"audio": "a.wav"}, "names a recording"),
        ({"system": ["Be brief."]}, "key 'system' is ['Be brief.'], expected the text of a system prompt"),
        ({"image_2": "a.png"}, "names an image"),
        ({"tools": "[{}]"}, "describes tools"),
        ({"chosen": GPT}, "is an answer of preference data"),
        ({"messages": [{"role": "user"}]}, "both 'conversations' and 'messages' hold a conversation; keep one of"),
        ({"messages": "USER: hi"}, "key 'messages' is not read; in other programs it is a conversation; keep this one"),
        ({"weight": 0}, "key 'weight' (0) is not read; in other programs it decides how much the sample is trained on"),
        ({"loss": False}, "key 'loss' (False)"),
        ({"skip": True}, "key 'skip' (True)"),
        ({"weight": 0.5}, "key 'weight' (0.5)"),
        ({"loss_mask": [0, 1, 1]}, "key 'loss_mask' has 3 values, the conversation 2 turns; give one per turn"),
    ],
)
def test_a_key_that_means_something_elsewhere_is_named(keys: dict[str, Any], said: str) -> None:
    assert said in problem_of({**TEXT, **keys})


@pytest.mark.parametrize(
    ("key", "value", "is_refused"),
    [
        ("loss", None, False),
        ("weight", 1, False),
        ("weight", 2, True),
        ("weight", "0", True),
        ("loss_mask", 0.5, True),
        ("masked", False, False),
        ("loss_scale", [1.0], True),
        ("image", "a.png", True),
        ("images", [], False),
        ("reasoning_content", "since", True),
        ("reasoning_content", " ", False),
        ("tool_calls", [{}], True),
        ("markdown", "ho", False),
    ],
)
def test_keys_of_answers(key: str, value: Any, is_refused: bool) -> None:
    problem = problem_of({**TEXT, "conversations": [HUMAN, {**GPT, key: value}]})
    assert (f"turn 1: key '{key}'" in problem) == is_refused and bool(problem) == is_refused


def test_keys_of_questions() -> None:
    assert "turn 0: key 'video'" in problem_of({**TEXT, "conversations": [{**HUMAN, "video": "a.mp4"}, GPT]})


def test_keys_that_ask_for_nothing_or_for_what_is_done_are_no_fault() -> None:
    harmless = {"video": None, "videos": [], "audio": "", "system": " ", "tools": {}, "weight": 1, "loss": True}
    for key, value in harmless.items():
        assert not problem_of({**TEXT, key: value}), key
    # where an image comes from, beside the image
    assert not problem_of({**TEXT, "image": "a.png", "image_url": "https://x/a.png", "image_path": "/data/a.png"})


def test_entries_of_public_data_sets_are_read() -> None:
    for extra in (
        {"data_source": "ai2d"},
        {"source": "x", "height": 480, "width": 640, "height_list": [480], "width_list": [640], "length": 9},
        {"url": "https://x/a.jpg", "blip_caption": "a"},
        {
            "question_id": 3,
            "domain": {"ct": True},
            "metadata": {},
            "task_name": "x",
            "bbox": [0, 0, 1, 1],
            "mask": "m.png",
        },
        {"model": "gpt-4v", "language": "en", "title": None, "custom_instruction": False, "system_prompt": None},
    ):
        sample = sample_of_entry(0, {**TEXT, "image": "coco/a.jpg", **extra})
        assert sample.problem is None and sample.images == ("coco/a.jpg",), sample.problem


def test_images_is_another_name_of_image() -> None:
    def read(**keys: Any) -> tuple[Any, str]:
        sample = sample_of_entry(0, {**TEXT, **keys})
        return sample.images, sample.problem or ""

    assert read(images=["a.png"]) == read(images="a.png") == read(image=None, images=["a.png"]) == (("a.png",), "")
    assert read(images=["a.png", "b.png"]) == (("a.png", "b.png"), "")
    assert read(image="a.png", images=["a.png"]) == read(image="a.png", images=None) == (("a.png",), "")
    assert read(images=[]) == read(images=None) == ((), "")
    assert "'image' is 'a.png', 'images' is 'b.png'; keep one" in read(image="a.png", images=["b.png"])[1]
    assert "'images' is {'url': 'a'}, expected a path, the bytes of an image" in read(images=[{"url": "a"}])[1]


def test_every_other_key_can_be_counted() -> None:
    turns = [{**HUMAN, "w": 1, "loss": 0}, {**GPT, "w": 0}]
    entry = {**TEXT, "images": [], "source": 1, "system": "be brief", "weight": 1, "conversations": turns}
    assert list(keys_not_read(entry)) == ["source", "conversations[].w"]
    parts = [{"type": "text", "text": "a"}, {"type": "image", "image": "a.png", "max_pixels": 9, "path": None}]
    messages = [{"role": "user", "content": parts, "name": "x"}, {"role": "assistant", "content": "b", "name": None}]
    assert list(keys_not_read({"messages": messages, "q": 1})) == [
        "q",
        "messages[].name",
        "messages[].content[].max_pixels",
    ]
    assert list(keys_not_read({"question": "a", "answer": "b", "caption": "c"})) == ["caption"]
    assert list(keys_not_read({"caption": "c", "url": "d", "image": b"e"})) == ["url"]
    for malformed in ("text", {"conversations": 3}, {"conversations": ["text"]}):
        assert not list(keys_not_read(malformed))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"conversatons": [HUMAN]}, "no 'conversations', but 'conversatons'; call it 'conversations'"),
        ({"x": 1}, "no conversation among the keys ('id', 'x'); read are 'conversations' or 'messages'"),
        ({"conversations": "USER: hi"}, "'conversations' is a text that is not a list in JSON"),
        ({"conversations": '[{"from": "hu'}, "'conversations' is a text that is not a list in JSON"),
        ({"conversations": {"from": "human"}}, "'conversations' is an object with 'from', expected a list of turns"),
        ({"conversations": {"from": ["human"], "value": []}}, "is an object with 'from', 'value', expected a list"),
        ({"conversations": 3}, "'conversations' is 3, expected a list of turns"),
        ({"conversations": ["hi"]}, "turn 0 is not an object; write 'from' and 'value'"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user"}]}, "turn 1 has no text: its content is None"),
        ({"messages": [{"speaker": "user", "text": "a"}]}, "turn 0 has the keys 'speaker', 'text'; write 'from' and"),
        ({"messages": [{"role": "user", "from": "gpt", "value": ""}]}, "turn 0 has 'from' and 'role', which differ"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role 'tool' is that of a tool, which is not read"),
        ({"messages": [{"role": "cat", "content": "a"}]}, "unknown role 'cat'; name it under data.roles as human, gpt"),
        (
            {"question": "a", "answer": "b", "query": "a", "response": "b"},
            "has 'query' and 'response', but also 'quest",
        ),
        ({"question": "a", "answer": 2}, "'answer' is a int, expected a text"),
        ({"question": "a", "answer": ["b", "c"]}, "'answer' has 2 texts; keep one, as a text"),
        ({"texts": [{"user": "a", "assistant": ["b", "c"]}]}, "turn 0: 'assistant' has 2 texts; keep one"),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
            "'prompt' is a list of turns; write all turns of the sample as 'messages'",
        ),
        (
            {"question": "a", "answer": "b", "choices": ["b"]},
            "key 'choices' is not read; in other programs it is a part",
        ),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "holds earlier turns; write all turns as 'mess"),
        ({"caption": "a dog", "text": "a cat", "image": "a.png"}, "'caption' and 'text' hold captions that differ"),
        (
            {"caption": "a dog", "question": "what?", "answers": ["a", "b"], "image": "a.png"},
            "'question' stands beside",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "mask": 1}]},
            "turn 0: key 'mask' (1) is not read; in oth",
        ),
        ({"caption": "a dog"}, "a caption without an image; name the image under 'image'"),
        ({"captions": ["a dog", "a cat"], "image": "a.png"}, "'captions' has 2 captions; keep one"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "key 'chosen' is not read; in other programs it is an answer",
        ),
    ],
)
def test_what_fits_no_dialect_is_named(entry: dict[str, Any], said: str) -> None:
    assert said in problem_of({"id": "a", **entry})


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("<video>\nWhat happens?", "<video>"),
        ("<video> What happens?", "<video>"),
        ("What happens?\n <audio> ", "<audio>"),
        ("<img>a/b.jpg</img> What?", "<img>a/b.jpg</img>"),
        ("What? <|image|>", "<|image|>"),
        ("<|vision_start|><|image_pad|><|vision_end|>What?", "<|vision_start|>"),
        ("Compare <image_1> with <image_2>.", "<image_1>"),
        ("<IMG_CONTEXT>", "<IMG_CONTEXT>"),
        ("<IMAGE> What?", "<IMAGE>"),
        ("How do I use <video> in HTML?", ""),
        ("<video>\n<source src='a.mp4'>\n</video>\nWhy does it not play?", ""),
        ('<img src="a.png"> is not shown', ""),
        ("if a<b and c>d", ""),
    ],
)
def test_marks_of_other_programs_in_samples_without_image(text: str, mark: str) -> None:
    entry = {**TEXT, "conversations": [{"from": "human", "value": text}, GPT]}
    problem = problem_of(entry)
    assert (f"turn 0 holds {mark!r}" in problem) if mark else not problem
    # with an image the count of <image> decides, and an answer may speak of tags
    assert not problem_of({**entry, "image": "a.png"})
    assert not problem_of({**TEXT, "conversations": [HUMAN, {"from": "gpt", "value": text}]})


def test_marks_that_are_kept_as_text_can_be_counted() -> None:
    turns = [Turn("human", "How do I use <video> or <img> in HTML? <video>"), Turn("gpt", "<audio> <b>")]
    assert marks_in(turns) == {"<video>", "<img>", "<audio>"}
