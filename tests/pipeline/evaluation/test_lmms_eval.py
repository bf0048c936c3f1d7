"""The plug-in for lmms-eval: found by its entry point, same answers as `alignkd eval`, other requests refused."""

import importlib
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageFile

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.question import Question
from alignkd.pipeline.evaluation.answering import Answering
from alignkd.pipeline.evaluation.journal import Process
from alignkd.pipeline.evaluation.lmms_eval.asked import Asked, GenerationSettings
from alignkd.pipeline.evaluation.parts import PARTS, AnswerParts
from alignkd.pipeline.evaluation.prompts import preparation_for
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.image_file import decode_image

STAND_IN = Path(__file__).parent / "lmms_eval_stand_in"
PROJECT = Path(__file__).parents[3] / "pyproject.toml"
MODEL = "alignkd.pipeline.evaluation.lmms_eval.model"


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The stand-in, and the metadata of an installed alignkd: what pyproject.toml declares."""
    declared = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"]["lmms_eval.models"]
    metadata = tmp_path / "installed" / "alignkd_stand_in-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: alignkd-stand-in\nVersion: 1\n")
    points = "".join(f"{name} = {value}\n" for name, value in declared.items())
    (metadata / "entry_points.txt").write_text(f"[lmms_eval.models]\n{points}")
    forget()
    monkeypatch.syspath_prepend(metadata.parent)
    monkeypatch.syspath_prepend(STAND_IN)
    instance = importlib.import_module("lmms_eval.api.instance")
    registry = importlib.import_module("lmms_eval.models.registry_v2").ModelRegistryV2()
    registry.load_entrypoint_manifests()
    yield SimpleNamespace(Instance=instance.Instance, registry=registry)
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lmms_eval" or name == MODEL]:
        del sys.modules[name]


@pytest.fixture
def loaded(lmms_eval: SimpleNamespace, brief_model: Path, golden: Path) -> Any:
    """The model as `python -m lmms_eval --model alignkd --model_args ... --batch_size 4` makes it."""
    arguments = f"pretrained={brief_model},vision_config={golden / 'clip'},dtype=float32"
    model_class = lmms_eval.registry.get_model_class("alignkd")
    return model_class.create_from_arg_string(arguments, {"batch_size": "4", "max_batch_size": None, "device": "cpu"})


@pytest.fixture
def requested(lmms_eval: SimpleNamespace, loaded: Any) -> Callable[..., list[Any]]:
    """requested(documents, context=..., settings=...): the instances that lmms-eval would make of a task."""

    def make(documents: Sequence[Any], context: Callable[[Any], str], settings: Callable[[Any], Any]) -> list[Any]:
        loaded.task_dict["golden"] = {"test": documents}
        shown = lambda document: document["images"]  # noqa: E731
        return [
            lmms_eval.Instance(
                request_type="generate_until",
                arguments=(context(document), settings(document), shown, number, "golden", "test"),
                idx=0,
                metadata={"task": "golden", "doc_id": number, "repeats": 1},
            )
            for number, document in enumerate(documents)
        ]

    return make


@pytest.fixture(scope="module")
def checkpoint(brief_model: Path, golden: Path) -> Checkpoint:
    return open_checkpoint(brief_model, vision_config=golden / "clip")


@pytest.fixture(scope="module")
def questions(eval_golden: Path) -> list[Question]:
    """Questions about pictures of different modes and shapes, one of them without a picture."""
    found = [*BENCHMARKS["textvqa"].questions(eval_golden / "textvqa" / "data")[:6]]
    found += BENCHMARKS["gqa"].questions(eval_golden / "gqa" / "data")[:5]
    found.append(next(one for one in BENCHMARKS["sqa"].questions(eval_golden / "sqa" / "data") if one.image is None))
    return [replace(one, max_new_tokens=3 + number % 4) for number, one in enumerate(found)]


def documents_of(questions: Sequence[Question]) -> list[dict[str, Any]]:
    return [
        {"question": one, "images": [] if one.image is None else [Image.open(Path(str(one.image)))]}
        for one in questions
    ]


def test_answers_are_those_of_alignkd_eval(
    loaded: Any,
    requested: Callable[..., list[Any]],
    questions: list[Question],
    checkpoint: Checkpoint,
    eval_golden: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "out" / PARTS).mkdir(parents=True)
    parts = AnswerParts(tmp_path / "out", questions, Process(device="cpu", batch=1, versions={}))
    preparation = preparation_for(checkpoint, questions)
    model = checkpoint.load_model()
    Answering(model=model, preparation=preparation, control=DumpControl(), folder=eval_golden, batch=1).answer(parts)
    expected = [one.text for one in parts.answers()]
    requests = requested(
        documents_of(questions),
        lambda document: document["question"].turn,
        lambda document: {
            "max_new_tokens": document["question"].max_new_tokens,
            "until": ["\n\n"],
            "temperature": 0,
            "top_p": 1.0,
            "num_beams": 1,
            "do_sample": False,
        },
    )
    assert loaded.generate_until(requests) == expected and len(set(expected)) > 3
    assert loaded.generate_until(requests[::-1]) == expected[::-1]


def test_truncated_files_are_no_matter_to_it(
    loaded: Any, requested: Callable[..., list[Any]], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval sets this when it is imported; alignkd refuses it wherever it reads files of others."""
    make = lambda: requested(documents_of(questions[:3]), lambda document: document["question"].turn, lambda _: {})  # noqa: E731
    expected = loaded.generate_until(make())
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert loaded.generate_until(make()) == expected
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is True"):
        decode_image(Path(str(questions[0].image)).read_bytes())


def test_a_request_with_two_images_sees_both(
    loaded: Any, requested: Callable[..., list[Any]], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [Image.open(Path(str(one.image))) for one in questions[:8:4]]
    documents: list[dict[str, Any]] = [{"images": pictures}, {"images": pictures[::-1]}, {"images": pictures}]
    texts = ["Compare.", "Compare.", "<image> and <image>: compare."]
    requests = requested(documents, lambda document: texts[documents.index(document)], lambda document: {})
    requests[2].arguments = (texts[2], *requests[2].args[1:])
    seen = []
    answering = loaded._answering
    build = type(answering.preparation).build_question

    def recorded(self: Any, turns: Any, files: Any) -> Any:
        example = build(self, turns, files)
        seen.append((turns[0].value, [image["pixel_values"].sum() for image in example.images]))
        return example

    monkeypatch.setattr(type(answering.preparation), "build_question", recorded)
    assert len(loaded.generate_until(requests)) == 3
    sums = {text: pixels for text, pixels in seen if text == texts[2]}[texts[2]]
    assert len(sums) == 2 and sums[0] != sums[1]
    placed = [pixels for text, pixels in seen if text == "<image> <image>\nCompare."]
    assert sorted(placed) == sorted([sums, sums[::-1]])


def test_what_cannot_be_asked_is_an_empty_answer_with_a_line(
    loaded: Any, requested: Callable[..., list[Any]], questions: list[Question], capsys: pytest.CaptureFixture[str]
) -> None:
    documents = documents_of(questions[:2])
    contexts = iter(["word " * 4000, questions[1].turn])
    requests = requested(documents, lambda document: next(contexts), lambda document: {"max_new_tokens": 4, "foo": 1})
    first, second = loaded.generate_until(requests)
    assert not first and second
    lines = capsys.readouterr().err.splitlines()
    assert any("task golden, document 0 has no answer" in line and "leaves no room" in line for line in lines)
    assert any("1 of 2 questions could not be asked" in line for line in lines)
    assert any("ignores the generation settings foo" in line for line in lines)


def test_other_requests_are_refused(loaded: Any, requested: Callable[..., list[Any]]) -> None:
    (request,) = requested([{"images": ["film.mp4"]}], lambda document: "What happens?", lambda document: {})
    with pytest.raises(InputError, match="task golden, document 0: a str where an image is expected"):
        loaded.generate_until([request])
    with pytest.raises(InputError, match=r"log-likelihood of given answers.*generate_until"):
        loaded.loglikelihood([request])
    with pytest.raises(InputError, match="several rounds"):
        loaded.generate_until_multi_round([request])
    assert loaded.generate_until([]) == []


@pytest.mark.parametrize("size", ["auto", 0, "-1"])
def test_batch_size_is_a_number(size: object, lmms_eval: SimpleNamespace, brief_model: Path) -> None:
    model_class = lmms_eval.registry.get_model_class("alignkd")
    with pytest.raises(InputError, match=rf"--batch_size is '?{size}"):
        model_class(str(brief_model), batch_size=size)


def test_processes_of_a_launcher_have_their_rank(
    lmms_eval: SimpleNamespace, brief_model: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model_class = lmms_eval.registry.get_model_class("alignkd")
    found = model_class(str(brief_model), vision_config=str(golden / "clip"), device="cpu", dtype="float32")
    assert (found.rank, found.world_size, found.batch_size, str(found.device)) == (1, 2, 1, "cpu")


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.2},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.5},
        {"num_beams": 3},
        {"max_new_tokens": 0},
        {"max_new_tokens": "many"},
        {"until": 3},
    ],
)
def test_settings_that_are_not_greedy_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^task vqa: "):
        GenerationSettings.read(values, "vqa")


@pytest.mark.parametrize(
    ("values", "limit", "until"),
    [
        ({}, 1024, ()),
        ({"max_new_tokens": 16, "until": "END"}, 16, ("END",)),
        ({"do_sample": False, "temperature": 0.7, "until": ["a", "", "b"]}, 1024, ("a", "b")),
        ({"do_sample": True, "temperature": 0, "until": None}, 1024, ()),
        ({"temperature": None, "num_beams": None, "top_p": None}, 1024, ()),
    ],
)
def test_greedy_settings(values: dict[str, Any], limit: int, until: tuple[str, ...]) -> None:
    read = GenerationSettings.read(values, "vqa")
    assert (read.max_new_tokens, read.until, read.ignored) == (limit, until, ())


def test_an_answer_ends_before_the_first_stop_text() -> None:
    settings = GenerationSettings.read({"until": ["\n\n", "USER:"]}, "vqa")
    assert settings.cut("a cat USER: and\n\nmore") == "a cat"
    assert settings.cut("a cat\n\nUSER:") == "a cat"
    assert settings.cut("a cat\n") == "a cat"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pixels_of_an_image_in_memory_are_kept(mode: str) -> None:
    gradient = Image.linear_gradient("L").resize((5, 7)).convert("RGB").convert(mode)
    if mode == "P":
        gradient.info["transparency"] = 3
    asked = Asked(name="one", context="?", images=[gradient], settings=GenerationSettings.read({}, "vqa"))
    (file,) = asked.sample(0).contents
    assert file is not None
    assert decode_image(file).tobytes() == gradient.convert("RGB").tobytes()
