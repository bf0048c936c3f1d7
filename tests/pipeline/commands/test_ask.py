"""`alignkd ask` against one full forward pass per token, and the shipped demo teacher on demo questions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from alignkd.pipeline.cli import main
from alignkd.pipeline.demo.models import TEACHER_CHECKPOINT
from alignkd.pipeline.demo.world.dataset import write_dataset
from alignkd.pipeline.demo.world.tokenizer import TOKENIZER_MODEL
from alignkd.pipeline.models.ask import Question, Reply, TextStream, ask
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences

QUESTIONS = ["What is on the table?", "<image>\nName three colours.", "Who? " * 20, "é 象 🙂"]


@torch.no_grad()
def without_cache(checkpoint: Path, clip: Path, text: str, image: Path | None, num_tokens: int) -> tuple[str, int]:
    """The twin: text and number of tokens, with the whole sequence again for every token."""
    builder = load_preparation(checkpoint, template="v1", vision_config=clip)
    model = load_model(checkpoint, vision_config=clip)
    files = [] if image is None else [image.read_bytes()]
    batch = collate_sequences([builder.build_question([Turn("human", text)], files)])
    vision = model.encode_images(batch.images) if batch.images else None
    embeds_BLD, ids = model.embed(batch, vision), list[int]()
    while len(ids) < num_tokens:
        token = model.lm_head(model.decoder_states(embeds_BLD)[:, -1]).argmax(dim=-1)
        if token.item() == builder.tokenizer.eos_token_id:
            break
        ids.append(int(token.item()))
        embeds_BLD = torch.cat([embeds_BLD, model.model.embed_tokens(token)[:, None]], dim=1)
    return builder.tokenizer.decode(ids).strip(), len(ids)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_answers_are_those_of_full_forward_passes(golden: Path, golden_images: Path, name: str) -> None:
    checkpoint, image = golden / name, golden_images / "chelsea.png"
    cases: list[tuple[str, Path | None, int]] = [(text.removeprefix("<image>\n"), None, 6) for text in QUESTIONS]
    cases += [(QUESTIONS[1], image, 8), (QUESTIONS[0], image, 30)]
    answers = set()
    for text, picture, num_tokens in cases:
        pieces: list[str] = []
        reply = ask(
            Question(
                checkpoint=checkpoint,
                text=text,
                images=() if picture is None else (picture,),
                vision_config=golden / "clip",
                max_new_tokens=num_tokens,
                device="cpu",
            ),
            on_text=pieces.append,
        )
        # Training puts the placeholder at the head of the question; the user need not write it.
        written = text if picture is None or "<image>" in text else f"<image>\n{text}"
        expected = without_cache(checkpoint, golden / "clip", written, picture, num_tokens)
        assert (reply.answer, reply.new_tokens) == expected
        assert "".join(pieces).strip() == reply.answer
        assert reply.stopped == ("end" if reply.new_tokens < num_tokens else "max_new_tokens")
        answers.add(reply.answer)
    assert len(answers) > len(cases) / 2, "answers must depend on the question for the test to say anything"


def test_the_shipped_teacher_answers_demo_questions(tmp_path: Path) -> None:
    files = write_dataset(tmp_path, num_scenes=3, pool="held_out", seed=11, questions_per_scene=3, single_turn=True)
    entries = [entry for entry in json.loads(files.conversations.read_text()) if "image" in entry]
    right = 0
    for entry in entries:
        question, answer = (turn["value"] for turn in entry["conversations"])
        asked = question.replace("<image>", "").strip()
        reply = ask(Question(checkpoint=TEACHER_CHECKPOINT, text=asked, images=(files.images / entry["image"],)))
        right += reply.answer == answer
    assert len(entries) >= 3 and right >= len(entries) - 1, f"{right} of {len(entries)}"


@given(ids=st.lists(st.integers(3, 403), max_size=24))
def test_streamed_pieces_only_append_and_make_the_whole_text(ids: list[int]) -> None:
    """Most ids of the demo's tokenizer are single bytes: characters come in pieces, and broken ones too."""
    tokenizer = LegacyLlamaTokenizer(TOKENIZER_MODEL)
    pieces: list[str] = []
    stream = TextStream(tokenizer.decode, pieces.append)
    for count in range(1, len(ids) + 1):
        stream.show(ids[:count])
        assert not "".join(pieces).endswith("\ufffd")
    stream.show(ids, is_last=True)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_comes_as_one_piece() -> None:
    tokenizer = LegacyLlamaTokenizer(TOKENIZER_MODEL)
    ids, pieces = tokenizer.encode("a 象!", add_bos=False), list[str]()
    stream = TextStream(tokenizer.decode, pieces.append)
    for count in range(1, len(ids) + 1):
        stream.show(ids[:count])
    assert len(ids) > 4 and "".join(pieces) == "a 象!"
    assert [piece for piece in pieces if "象" in piece] == ["象"]


def test_generation_ends_where_the_positions_end(golden: Path, tmp_path: Path) -> None:
    def reply(max_positions: int) -> Reply:
        raw["max_position_embeddings"] = max_positions
        (folder / "config.json").write_text(json.dumps(raw))
        return ask(
            Question(checkpoint=folder, text="hi", vision_config=golden / "clip", max_new_tokens=9, device="cpu")
        )

    folder = tmp_path / "student"
    shutil.copytree(golden / "student", folder)
    raw = json.loads((folder / "config.json").read_text())
    free = reply(2048)
    assert (free.new_tokens, free.stopped) == (9, "max_new_tokens")
    short = reply(free.prompt_tokens + 4)
    assert (short.new_tokens, short.stopped) == (4, "context")
    with pytest.raises(
        InputError, match=rf"the prompt has {free.prompt_tokens} tokens, .* takes {free.prompt_tokens};"
    ):
        reply(free.prompt_tokens)


def test_the_command_prints_the_answer_or_json(golden: Path, golden_images: Path) -> None:
    options = ["--vision-config", str(golden / "clip"), "--image", str(golden_images / "coffee.png")]
    command = ["ask", str(golden / "student"), "What is it?", *options, "--max-new-tokens", "5", "--device", "cpu"]
    printed, as_json = CliRunner().invoke(main, command), CliRunner().invoke(main, [*command, "--json"])
    assert printed.exit_code == as_json.exit_code == 0, (printed.output, as_json.output)
    report = json.loads(as_json.stdout)
    assert printed.stdout.strip() == report["answer"]
    assert report["new_tokens"] == 5 and report["prompt_tokens"] > 144 and report["dtype"] == "float32"
    assert report["question"]["text"] == "What is it?" and report["tokens_per_second"] > 0
    assert report["seconds"] >= report["first_token_seconds"] > 0 and report["load_seconds"] > 0
    assert "empty" not in printed.stderr
    half = json.loads(CliRunner().invoke(main, [*command, "--json", "--dtype", "bfloat16"]).stdout)
    assert half["dtype"] == "bfloat16"


def test_an_empty_answer_is_said_to_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(question: Question, **_: Any) -> Reply:
        figures: dict[str, Any] = dict.fromkeys(
            ("load_seconds", "first_token_seconds", "seconds", "tokens_per_second"), 0.0
        )
        kind: dict[str, Any] = {"device": "cpu", "dtype": "float32", "quantization": "none"}
        return Reply(answer="", stopped="end", prompt_tokens=9, new_tokens=1, **kind, **figures)

    monkeypatch.setattr("alignkd.pipeline.models.ask.ask", silent)
    result = CliRunner().invoke(main, ["ask", "checkpoint", "What?"])
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr == "alignkd: the answer is empty; generated tokens: 1\n"


def test_the_processor_for_pillow_needs_no_torchvision(
    golden_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is what transformers generates from the arrays of its processor of that kind."""
    checkpoint, image = tiny_families.build("qwen3_vl", tmp_path / "model", seed=1), golden_images / "coffee.png"
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    content = [{"type": "image", "image": Image.open(image).convert("RGB")}, {"type": "text", "text": "What?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    monkeypatch.setattr("alignkd.vlm.families.huggingface.inputs.processor._has_torchvision", lambda: False)
    command = ["ask", str(checkpoint), "What?", "--image", str(image), "--max-new-tokens", "6", "--device", "cpu"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1 and "processor: pil" in refused.stderr and refused.stderr.count("\n") == 1
    found = CliRunner().invoke(main, [*command, "--processor", "pil", "--json"])
    assert found.exit_code == 0, found.output
    reply = json.loads(found.stdout)
    assert reply["question"]["processor"] == "pil" and reply["prompt_tokens"] == inputs["input_ids"].shape[1]
    assert reply["answer"] == processor.decode(ids, skip_special_tokens=True).strip() != ""


def test_template_plain_captions_an_image(golden: Path, golden_images: Path) -> None:
    options = ["--vision-config", str(golden / "clip"), "--template", "plain", "--max-new-tokens", "4", "--json"]
    captioned = CliRunner().invoke(
        main, ["ask", str(golden / "student"), *options, "--image", str(golden_images / "coffee.png")]
    )
    report = json.loads(captioned.stdout)
    assert report["prompt_tokens"] == 1 + 144 and report["new_tokens"] == 4


def test_logits_that_are_not_finite_are_one_line(golden: Path, tmp_path: Path) -> None:
    """The weights are finite, what is computed from them is not."""
    shutil.copytree(golden / "student", tmp_path / "student")
    weights = load_file(tmp_path / "student" / "model.safetensors")
    weights["lm_head.weight"].fill_(3e38)
    save_file(weights, tmp_path / "student" / "model.safetensors")
    result = CliRunner().invoke(
        main, ["ask", str(tmp_path / "student"), "What?", "--vision-config", str(golden / "clip")]
    )
    assert result.exit_code == 1 and not result.stdout.strip()
    device, line = result.stderr.strip().splitlines()
    assert device.startswith("alignkd: device cpu (")
    assert "the logits are not finite (NaN or infinity) in float32" in line and "try dtype float32" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CHECKPOINT"], "no question; write it after the options"),
        (["CHECKPOINT", "hi", "--template", "plain"], "template 'plain' captions an image and takes no question"),
        (["CHECKPOINT", "--template", "plain"], "give one with --image"),
        (["CHECKPOINT", "<image> hi"], "the question: 1 <image> in the conversation but 0 images"),
        (
            ["CHECKPOINT", "hi", "--image", "none.png"],
            "image cannot be read (No such file or directory); check the path",
        ),
        (["CHECKPOINT", "hi", "--image", "CHECKPOINT/config.json"], "config.json: "),
        (["CHECKPOINT", "hi", "--device", "kuda"], "device 'kuda' cannot be used"),
        (["CHECKPOINT/none", "hi"], "no such checkpoint folder"),
    ],
)
def test_mistakes_are_one_line(golden: Path, arguments: list[str], message: str) -> None:
    given_arguments: list[Any] = [part.replace("CHECKPOINT", str(golden / "student")) for part in arguments]
    result = CliRunner().invoke(main, ["ask", *given_arguments, "--vision-config", str(golden / "clip")])
    assert result.exit_code == 1 and not result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("alignkd: ") and message in line, line


def exported(golden: Path, output: Path, vision_config: Path) -> Path:
    """The golden student as a run would export it: `OUTPUT/student`, and the run's configuration next to it."""
    shutil.copytree(golden / "student", output / "student")
    student = {"checkpoint": "start", "vision_config": str(vision_config), "dtype": "float32"}
    (output / "run.json").write_text(json.dumps({"data": {}, "store": {}, "train": {}, "student": student}))
    return output / "student"


def test_an_exported_student_needs_no_vision_config(golden: Path, tmp_path: Path) -> None:
    """The run's configuration names it, for `ask` and for `models`; a folder that is gone is named."""
    student = exported(golden, tmp_path / "out", golden / "clip")
    options = ["--max-new-tokens", "4", "--json"]
    found = CliRunner().invoke(main, ["ask", str(student), "Who?", *options])
    given = CliRunner().invoke(main, ["ask", str(student), "Who?", *options, "--vision-config", str(golden / "clip")])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["answer"] == json.loads(given.stdout)["answer"]
    (size,) = json.loads(CliRunner().invoke(main, ["models", str(student), "--json"]).stdout)
    assert size["parameters"]["vision_tower"] < 1_000_000  # not that of the official tower
    gone = exported(golden, tmp_path / "other", tmp_path / "gone")
    refused = CliRunner().invoke(main, ["ask", str(gone), "Who?"])
    assert refused.exit_code == 1 and len(refused.stderr.splitlines()) == 1
    assert f"vision_config {tmp_path / 'gone'}, which does not exist" in refused.stderr
    assert "by --vision-config" in refused.stderr
