"""One conversation in every dialect gives equal turns, images, ids and labels, whatever the model."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tiny_families
from PIL import Image

from alignkd.vlm.data.entries.dialects import PAIRS
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.images import image_files
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.huggingface.inputs.opening import open_preparation
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.inputs.labels import IGNORE_LABEL

GOLDEN = Path(__file__).parents[2] / "golden" / "mobilevlm_v2_tiny"
SYSTEM, ASKED, SEEN, AGAIN, THEN = "Be brief.", "What is it?", "a cup", "And that?", "two spoons"
TURNS = (
    Turn("system", SYSTEM),
    Turn("human", f"<image>\n{ASKED}"),
    Turn("gpt", SEEN, trained=False),
    Turn("human", AGAIN),
    Turn("gpt", THEN),
)
ROLES = ("system", "user", "assistant", "user", "assistant")
TEXTS = (SYSTEM, ASKED, SEEN, AGAIN, THEN)
PAIRS_OF_TURNS = [{"user": ASKED, "assistant": SEEN, "loss": 0}, {"user": AGAIN, "assistant": THEN, "source": "x"}]


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (100, 60), "red").save(stream, "PNG")
    return stream.getvalue()


PICTURE = picture()
BASE64 = base64.b64encode(PICTURE).decode()


def turns(role: str, content: str, *, mark: str = "", masked: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The conversation as turns with these keys; the first answer also has `masked`."""
    texts = [mark + text if text == ASKED else text for text in TEXTS]
    masked = {"loss": False} if masked is None else masked
    return [
        {role: name, content: text} | (masked if text == SEEN else {}) for name, text in zip(ROLES, texts, strict=True)
    ]


def with_part(part: dict[str, Any], kind: str = "text") -> list[dict[str, Any]]:
    """The conversation as messages, the first question as an image part and a text part."""
    found = turns("role", "content")
    found[1]["content"] = [part, {"type": kind, "text": ASKED}]
    return found


def llava() -> dict[str, Any]:
    said = turns("from", "value", mark="<image>\n", masked={"weight": 0})
    for turn in said:
        turn["from"] = {"user": "human", "assistant": "gpt"}.get(turn["from"], turn["from"])
    return {"image": "sub/a.png", "conversations": said}


def from_parquet(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The entry as a row of a Parquet file."""
    file = folder / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([entry]), file)
    row: dict[str, Any] = pyarrow.parquet.read_table(file).to_pylist()[0]
    return row


def in_numpy(value: Any) -> Any:
    """A row as pandas has it."""
    if isinstance(value, list):
        array = np.empty(len(value), object)
        array[:] = [in_numpy(item) for item in value]
        return array
    if isinstance(value, dict):
        return {key: in_numpy(item) for key, item in value.items()}
    return np.int64(value) if isinstance(value, int) and not isinstance(value, bool) else value


def dialects(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    own = {"images": ["sub/a.png"]}
    yield "LLaVA", llava()
    yield "as a store has it", {"image": "sub/a.png", "conversations": sample_of_entry(0, llava()).conversations()}
    for role, content in (("role", "content"), ("role", "value"), ("from", "content")):
        yield f"{role}/{content}", {"image": "sub/a.png", "conversations": turns(role, content)}
    for key in ("messages", "conversation", "dialog", "dialogue", "turns", "chat", "texts"):
        yield key, {**own, key: turns("role", "content", masked={"mask_loss": 1})}
    yield "capitals", {**own, "messages": [{**turn, "role": turn["role"].title()} for turn in turns("role", "content")]}
    yield "developer", {**own, "messages": [{"role": "developer", "content": SYSTEM}, *turns("role", "content")[1:]]}
    yield "JSON in a text", {**own, "messages": json.dumps(turns("role", "content"))}
    yield "marks in texts", {**own, "messages": turns("role", "content", mark="<image>\n")}
    keys = ("role", "content", "loss")
    yield "columns", {**own, "messages": {key: [turn.get(key) for turn in turns("role", "content")] for key in keys}}
    yield "a mask per turn", {**own, "messages": turns("role", "content", masked={}), "loss_mask": [0, 0, 0, 0, 1]}
    yield "The Cauldron", {**own, "texts": PAIRS_OF_TURNS, "system": SYSTEM}
    yield "pairs", {**own, "conversations": PAIRS_OF_TURNS, "system_prompt": SYSTEM, "system": None}
    yield "system twice", {**own, "messages": turns("role", "content"), "system": SYSTEM}
    for name, part in {
        "next": {"type": "image"},
        "index": {"type": "image", "index": 0, "text": None},
    }.items():
        yield f"part {name}", {**own, "messages": with_part(part)}
    url = f"data:image/png;base64,{BASE64}"
    for name, part in {
        "image": {"type": "image", "image": "sub/a.png"},
        "path": {"type": "image", "path": str(folder / "sub" / "a.png")},
        "url": {"type": "image", "url": f"file://{folder}/sub/a.png"},
        "base64": {"type": "image", "base64": BASE64},
        "image_url": {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        "image_url text": {"type": "image_url", "image_url": "sub/a.png"},
        "source": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        "without type": {"image": "sub/a.png"},
        "bytes": {"type": "image", "image": {"bytes": PICTURE, "path": None}},
    }.items():
        yield f"part {name}", {"messages": with_part(part)}
    yield "responses", {"messages": with_part({"type": "input_image", "image_url": url}, "input_text")}
    yield "base64 image", {"image": BASE64, "messages": turns("role", "content")}
    for name, image in {
        "struct": {"bytes": PICTURE, "path": "a.png"},
        "nameless struct": {"bytes": PICTURE, "path": None},
        "list of structs": [{"bytes": PICTURE, "path": None}],
        "bytes": PICTURE,
    }.items():
        row = from_parquet({"image": image, "messages": turns("role", "content"), "width": 100}, folder)
        yield f"Parquet, {name}", row
        yield f"Parquet, {name}, pandas", in_numpy(row)
    row = from_parquet({"images": [PICTURE], "messages": with_part({"type": "image"})[1:2], "system": SYSTEM}, folder)
    assert row["messages"][0]["content"][0] == {"type": "image", "text": None}
    rest = from_parquet({"messages": with_part({"type": "image"})[2:]}, folder)
    yield "Parquet, parts", {**row, "messages": [*row["messages"], *rest["messages"]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = tmp_path_factory.mktemp("images")
    (images / "sub").mkdir()
    (images / "sub" / "a.png").write_bytes(PICTURE)
    return images


@pytest.fixture(scope="module", params=["MobileVLM", "qwen2_5_vl", "gemma3"])
def preparation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    if request.param != "MobileVLM":
        return open_preparation(tiny_families.build(request.param, tmp_path_factory.mktemp("family") / "checkpoint"))
    tokenizer = LegacyLlamaTokenizer(GOLDEN / "teacher" / "tokenizer.model")
    return MobileVLMPreparation(
        tokenizer=tokenizer, template="v1", image_processor=ImageProcessor(image_size=28), vision_tokens=4
    )


def read(entry: dict[str, Any], folder: Path, **said: Any) -> Sample:
    sample = sample_of_entry(0, entry, EntryReading.of(DataSet(path=Path("data.json"), images=folder, **said)))
    assert sample.problem is None, sample.problem
    return sample


def test_every_dialect_gives_the_same_turns_and_images(folder: Path) -> None:
    names = []
    for name, entry in dialects(folder):
        sample = read(entry, folder)
        assert sample.turns == TURNS, name
        assert image_files(sample) == (PICTURE,), name
        names.append(name)
    assert len(names) == len(set(names)) > 30


def test_what_the_user_says_stands_for_what_the_data_lacks(folder: Path) -> None:
    said = turns("role", "content")[1:]
    for turn in said:
        turn["role"] = {"user": "Fragende", "assistant": "system"}[turn["role"]]
    entry = {"image": "sub/a.png", "messages": said}
    roles = {"fragende": "human", "SYSTEM": "gpt"}
    assert read(entry, folder, roles=roles, system=SYSTEM).turns == TURNS
    assert read(llava(), folder, system="Be verbose.").turns == TURNS  # the entry has its own


def test_ids_and_labels_are_equal_too(folder: Path, preparation: Preparation) -> None:
    samples = [read(entry, folder) for _, entry in dialects(folder)]
    built = [preparation.build(sample.turns, image_files(sample)) for sample in samples]
    for example in built[1:]:
        np.testing.assert_array_equal(example.input_ids, built[0].input_ids)
        np.testing.assert_array_equal(example.labels, built[0].labels)
    # the whole text is there, and the second answer alone is supervised
    pieces = preparation.marked(built[0])
    (supervised,) = (text for text, is_supervised in pieces if is_supervised)
    assert supervised.strip().startswith(THEN)
    whole = "".join(text for text, _ in pieces)
    places = [whole.index(text) for text in TEXTS]
    assert places == sorted(places)
    # without the mask: the same ids, and the first answer has labels as well
    everything = preparation.build([Turn(turn.speaker, turn.value) for turn in TURNS], [PICTURE])
    np.testing.assert_array_equal(everything.input_ids, built[0].input_ids)
    more = (everything.labels != IGNORE_LABEL) & (built[0].labels == IGNORE_LABEL)
    first = preparation.build([*TURNS[:2], Turn("gpt", SEEN)], [PICTURE])
    assert everything.labels[more].tolist() == [label for label in first.labels.tolist() if label != IGNORE_LABEL]


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_a_question_and_its_answer(pair: tuple[str, str], folder: Path) -> None:
    question, answer = pair
    entry = {question: ASKED, answer: SEEN, "image": "sub/a.png", "category": "x"}
    wanted = (Turn("human", f"<image>\n{ASKED}"), Turn("gpt", SEEN))
    assert read(entry, folder).turns == wanted
    assert read({**entry, question: f"<image>\n{ASKED}"}, folder).turns == wanted
    assert read({**entry, question: [ASKED], answer: [SEEN]}, folder).turns == wanted
    assert read({**entry, question: [{"type": "image"}, {"type": "text", "text": ASKED}]}, folder).turns == wanted
    assert read({**entry, "image": None}, folder).turns == (Turn("human", ASKED), Turn("gpt", SEEN))
    if question == "instruction":
        assert read({**entry, "input": "Look."}, folder).turns[0].value == f"<image>\n{ASKED}\nLook."
        assert read({**entry, "input": ""}, folder).turns == wanted


@pytest.mark.parametrize("caption", [{"caption": SEEN}, {"text": SEEN}, {"captions": [SEEN]}, {"txt": SEEN}])
def test_a_caption(caption: dict[str, Any], folder: Path) -> None:
    assert read({"image": PICTURE, **caption}, folder).turns == (Turn("human", "<image>"), Turn("gpt", SEEN))


def test_several_images_in_several_turns(folder: Path) -> None:
    def image(path: str | None = None) -> dict[str, Any]:
        return {"type": "image", "image": path}

    def text(value: str) -> dict[str, Any]:
        return {"type": "text", "text": value}

    first = [text("Compare"), image("1.png"), text(" with "), image("2.png"), text(".")]
    second = [image("3.png"), image("4.png")]
    answers = [{"role": "assistant", "content": value} for value in ("no", "yes")]
    said = [{"role": "user", "content": first}, answers[0], {"role": "user", "content": second}, answers[1]]
    sample = read({"messages": said}, folder)
    assert sample.images == ("1.png", "2.png", "3.png", "4.png")
    assert [turn.value for turn in sample.turns[::2]] == ["Compare\n<image> with <image>\n.", "<image>\n<image>"]
    # the same in marks, in parts that take the next image, and in parts that say which
    images = ["1.png", "2.png", "3.png", "4.png"]
    for part in [*first, *second]:
        if part["type"] == "image":
            part["image"] = None
    assert read({"messages": said, "images": images}, folder) == sample
    said[2]["content"] = "<image>\n<image>"
    assert read({"messages": said, "images": images}, folder) == sample
    first[1], first[3] = {"type": "image", "index": 1}, {"type": "image", "index": 0}
    said[2]["content"] = [{"type": "image", "index": 3}, {"type": "image", "index": 2}]
    assert read({"messages": said, "images": images}, folder).images == ("2.png", "1.png", "4.png", "3.png")
    # in front of the first question where nothing shows them
    plain = [{"role": "user", "content": "Compare."}, answers[0], {"role": "user", "content": "Why?"}, answers[1]]
    sample = read({"messages": plain, "images": images[:2]}, folder)
    assert [turn.value for turn in sample.turns[::2]] == ["<image>\n<image>\nCompare.", "Why?"]


def test_llava_needs_its_marks(preparation: Preparation, folder: Path) -> None:
    entry = llava()
    entry["conversations"][1]["value"] = ASKED
    with pytest.raises(SampleError, match="0 <image> in the conversation but 1 image; write <image> exactly once per"):
        preparation.build(read(entry, folder).turns, [PICTURE])
