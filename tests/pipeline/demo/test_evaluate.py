"""Evaluation against greedy decoding written out by hand: no cache, one question at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.pipeline.demo import evaluate as evaluate_module
from alignkd.pipeline.demo.evaluate import evaluate, read_evaluation, write_evaluation
from alignkd.pipeline.demo.models import STUDENT, write_configs
from alignkd.pipeline.demo.world.dataset import DatasetFiles, write_dataset
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint, load_model, load_preparation
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.inputs.batch import collate_sequences

MAX_NEW_TOKENS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights so large that its answers depend on question and picture, though it never learnt."""
    folder = tmp_path_factory.mktemp("evaluate") / "model"
    write_configs(folder, STUDENT)
    model = new_model(load_config(folder), seed=0)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(6.0 if parameter.dim() > 1 else 1.0)
        model.model.embed_tokens.weight.mul_(0.02)  # else the last token alone decides
        model.lm_head.weight[2] *= 2  # so that some answers end early
    save_model(model, folder, tokenizer_from=folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    """Single questions about 12 scenes and some without a picture."""
    out = tmp_path_factory.mktemp("questions")
    return write_dataset(out, num_scenes=12, pool="held_out", seed=5, questions_per_scene=3, single_turn=True)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path, questions: DatasetFiles) -> list[str]:
    """The model's answer to each question, by the whole forward pass for every token."""
    builder, model = load_preparation(checkpoint, template="v1"), load_model(checkpoint)
    texts = []
    for sample in load_samples(questions.conversations):
        files = read_images(questions.images, sample.images)
        batch = collate_sequences([builder.build_question(sample.turns[:1], files)])
        vision = model.encode_images(batch.images) if batch.images else None
        embeds_BLD, ids = model.embed(batch, vision), list[int]()
        while len(ids) < MAX_NEW_TOKENS:
            with torch.no_grad():
                token = model.lm_head(model.decoder_states(embeds_BLD)[:, -1]).argmax(dim=-1)
            if token.item() == builder.tokenizer.eos_token_id:
                break
            ids.append(int(token.item()))
            embeds_BLD = torch.cat([embeds_BLD, model.model.embed_tokens(token)[:, None]], dim=1)
        texts.append(builder.tokenizer.decode(ids).strip())
    return texts


def change_answers(questions: DatasetFiles, target: Path, answers: list[str]) -> list[dict[str, Any]]:
    """The question file with other right answers."""
    entries: list[dict[str, Any]] = json.loads(questions.conversations.read_text())
    for entry, answer in zip(entries, answers, strict=True):
        entry["conversations"][1]["value"] = answer
    target.write_text(json.dumps(entries))
    return entries


def test_answers_are_those_of_the_oracle_whatever_the_batch(
    checkpoint: Path, questions: DatasetFiles, oracle: list[str]
) -> None:
    assert len(set(oracle)) > len(oracle) / 3, "answers must depend on the question for the test to say anything"
    assert len({len(text.split()) for text in oracle}) > 1, "some answers must end early"
    for batch in (1, 5, 128):
        evaluation = evaluate(
            checkpoint,
            questions.conversations,
            questions.images,
            template="v1",
            max_new_tokens=MAX_NEW_TOKENS,
            batch=batch,
        )
        assert [answer.found for answer in evaluation.answers] == oracle
    samples = load_samples(questions.conversations)
    assert [answer.id for answer in evaluation.answers] == [sample.id for sample in samples]
    assert any(not answer.images for answer in evaluation.answers)


def test_figures_count_right_answers_overall_and_per_type(
    checkpoint: Path, questions: DatasetFiles, oracle: list[str], tmp_path: Path
) -> None:
    # Every third expected answer is another one; blanks around an answer do not count, letters do.
    wanted = [f"  {text}\n" if number % 3 else f"{text} no" for number, text in enumerate(oracle)]
    entries = change_answers(questions, tmp_path / "questions.json", wanted)
    evaluation = evaluate(
        checkpoint, tmp_path / "questions.json", questions.images, template="v1", max_new_tokens=MAX_NEW_TOKENS
    )
    right = [number % 3 != 0 for number in range(len(entries))]
    assert [answer.right for answer in evaluation.answers] == right
    assert evaluation.accuracy == sum(right) / len(right)
    types = [entry["question_types"][0] for entry in entries]
    for name in set(types):
        of_type = [flag for flag, kind in zip(right, types, strict=True) if kind == name]
        assert evaluation.counts[name] == len(of_type)
        assert evaluation.by_type[name] == sum(of_type) / len(of_type)
    write_evaluation(evaluation, tmp_path / "deep" / "answers.json")
    assert read_evaluation(tmp_path / "deep" / "answers.json") == evaluation


def test_question_types_are_optional(checkpoint: Path, questions: DatasetFiles, tmp_path: Path) -> None:
    entries = json.loads(questions.conversations.read_text())[:2]
    for entry in entries:
        del entry["question_types"]
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, entries)))
    evaluation = evaluate(checkpoint, tmp_path / "plain.jsonl", questions.images, template="v1", max_new_tokens=1)
    assert len(evaluation.answers) == 2
    assert evaluation.by_type == {}


def several_turns(entry: dict[str, Any]) -> None:
    entry["conversations"] = entry["conversations"] * 2
    entry["conversations"][2] = {"from": "human", "value": "and then?"}


def no_placeholder(entry: dict[str, Any]) -> None:
    entry["conversations"][0]["value"] = "what digit is top-left?"


def missing_image(entry: dict[str, Any]) -> None:
    entry["image"] = "scenes/none.png"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (several_turns, "turns of human, gpt, human, gpt, expected human, gpt"),
        (no_placeholder, "0 <image> in the conversation but 1 image"),
        (missing_image, "none.png: image cannot be read"),
        (lambda entry: entry.update(conversations=[]), "empty conversation"),
    ],
)
def test_unusable_questions_are_one_line_with_file_and_sample(
    checkpoint: Path, questions: DatasetFiles, tmp_path: Path, spoil: Any, message: str
) -> None:
    entries = json.loads(questions.conversations.read_text())[:2]
    spoil(entries[1])
    file = tmp_path / "spoilt.json"
    file.write_text(json.dumps(entries))
    with pytest.raises(InputError) as caught:
        evaluate(checkpoint, file, questions.images, template="v1")
    assert message in str(caught.value)
    assert f"{file}: sample {entries[1]['id']!r} (index 1)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_questions_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(InputError, match=r"none\.json: contains no questions"):
        evaluate(checkpoint, tmp_path / "none.json", tmp_path, template="v1")


def test_a_gpu_runs_the_checkpoints_own_dtype_and_a_cpu_float32(
    checkpoint: Path, questions: DatasetFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: what would be loaded, and where."""
    asked = []

    class LoadedError(Exception):
        pass

    def load(*_: Any, **options: Any) -> None:
        asked.append((options["device"].type, options["dtype"]))
        raise LoadedError

    monkeypatch.setattr(MobileVLMCheckpoint, "load_model", load)
    monkeypatch.setattr(evaluate_module, "usable_device", lambda name: torch.device(name or "cuda"))
    raw = json.loads((checkpoint / "config.json").read_text())
    for saved in ("float16", "bfloat16", "float32"):
        (checkpoint / "config.json").write_text(json.dumps({**raw, "torch_dtype": saved}))
        for device in ("cpu", "cuda:1", None):
            with pytest.raises(LoadedError):
                evaluate(checkpoint, questions.conversations, questions.images, template="v1", device=device)
    (checkpoint / "config.json").write_text(json.dumps(raw))
    cpu = ("cpu", torch.float32)
    halves = [[cpu, ("cuda", dtype), ("cuda", dtype)] for dtype in (torch.float16, torch.bfloat16, torch.float32)]
    assert asked == [case for cases in halves for case in cases]
