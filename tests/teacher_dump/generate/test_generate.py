"""Answers of the golden teacher against a loop without a cache, whatever the batches are, and what is refused."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from continued import followed_by, teacher_forced_logprob
from torch import Tensor
from written_answers import answers_of, bytes_of, entries_of

from alignkd.storage import StoreReader
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.generate.generate import generate_answers
from alignkd.teacher_dump.generate.job import GenerateJob
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import Generated, Turn
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences

MakeJob = Callable[..., GenerateJob]
Entries = list[dict[str, Any]]
SAMPLED: dict[str, Any] = {"sampling": "sample", "temperature": 1.2, "top_p": 0.9}


@pytest.fixture(scope="module")
def teacher(golden: Path) -> MobileVLM:
    return load_model(golden / "teacher", vision_config=golden / "clip")


@pytest.fixture(scope="module")
def preparation(golden: Path) -> MobileVLMPreparation:
    return load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")


@torch.no_grad()
def naive(model: MobileVLM, preparation: MobileVLMPreparation, entry: Any, images: Path, num_tokens: int) -> list[Turn]:
    """The twin: one question after the other, the whole sequence again for every token; the answers."""
    files = [(images / entry["image"]).read_bytes()] if "image" in entry else []
    turns: list[Turn] = []
    for question in entry["conversations"]:
        turns.append(Turn(question["from"], question["value"]))
        prompt = preparation.build_question(turns, files)
        ids: list[int] = []
        while len(ids) < num_tokens and not preparation.stop_ids.intersection(ids):
            batch = collate_sequences([followed_by(prompt, ids)])
            hidden = model.hidden_states(batch, model.encode_images(batch.images) if files else None)
            ids.append(int(model.lm_head(hidden[0, -1])[: preparation.num_tokens].argmax()))
        logprob = teacher_forced_logprob(model, prompt, ids, num_tokens=preparation.num_tokens)
        finished = ids[-1] in preparation.stop_ids
        text = preparation.decode(ids[:-1] if finished else ids).strip()
        generated = Generated(by="naive", logprob=logprob, tokens=len(ids), finished=finished)
        turns.append(Turn("gpt", text, generated=generated))
    return [turn for turn in turns if turn.speaker == "gpt"]


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_those_of_a_loop_without_a_cache(
    make_job: MakeJob,
    questions: Entries,
    golden_images: Path,
    teacher: MobileVLM,
    preparation: MobileVLMPreparation,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    batch: int,
) -> None:
    first = naive(teacher, preparation, questions[0], golden_images, 4)[0].value
    stop = preparation.tokenizer.encode(first)[2]
    monkeypatch.setattr(MobileVLMPreparation, "stop_ids", frozenset([stop, 2]))
    result = generate_answers(make_job(batch=batch), teacher)
    entries = entries_of(tmp_path / "out")
    assert [entry["id"] for entry in entries] == [entry["id"] for entry in questions]
    count = finished = 0
    for entry, asked in zip(entries, questions, strict=True):
        assert entry.get("image") == asked.get("image")
        assert [turn for turn in entry["conversations"] if turn["from"] == "human"] == asked["conversations"]
        found = [turn for turn in entry["conversations"] if turn["from"] == "gpt"]
        for turn, expected in zip(found, naive(teacher, preparation, asked, golden_images, 4), strict=True):
            assert turn["value"] == expected.value
            generated, twin = turn["generated"], expected.generated
            assert twin is not None and generated["by"].endswith("teacher")
            assert (generated["tokens"], generated["finished"]) == (twin.tokens, twin.finished)
            assert generated["logprob"] == pytest.approx(twin.logprob, abs=2e-4)
            count, finished = count + 1, finished + generated["finished"]
    assert (result.answers, result.finished, result.entries) == (count, finished, 4)
    assert count > 4  # a sample has several questions
    assert result.tokens == sum(
        t["generated"]["tokens"] for e in entries for t in e["conversations"] if "generated" in t
    )


def test_draws_do_not_depend_on_batch_or_window_but_on_the_seed(
    make_job: MakeJob, teacher: MobileVLM, tmp_path: Path
) -> None:
    texts = []
    for name, settings in {
        "alone": {"batch": 1},
        "together": {"batch": 16, "shard_size": 9},
        "small": {"batch": 2, "window": 1},
        "other": {"seed": 1},
    }.items():
        generate_answers(make_job(output=tmp_path / name, **{**SAMPLED, **settings}), teacher)
        texts.append([answers_of(entry) for entry in entries_of(tmp_path / name)])
    assert texts[0] == texts[1] == texts[2] != texts[3]


def test_several_entries_of_a_sample_have_answers_of_their_own(
    make_job: MakeJob, questions: Entries, teacher: MobileVLM, tmp_path: Path
) -> None:
    generate_answers(make_job(samples_per_question=3, **SAMPLED), teacher)
    entries = entries_of(tmp_path / "out")
    assert [entry["id"] for entry in entries] == [f"{q['id']}-{n}" for q in questions for n in (1, 2, 3)]
    assert len({str(answers_of(entry)) for entry in entries[:3]}) == 3
    generate_answers(make_job(output=tmp_path / "one", **SAMPLED), teacher)
    assert [answers_of(entry) for entry in entries_of(tmp_path / "one")] == list(map(answers_of, entries[::3]))


def test_given_answers_are_kept_or_written_anew(
    make_job: MakeJob, golden: Path, questions: Entries, teacher: MobileVLM, tmp_path: Path
) -> None:
    given: Entries = json.loads((golden / "v1.json").read_text())
    mixed = [given[0], {**given[1], "conversations": given[1]["conversations"][:3]}, *questions[2:]]
    result = generate_answers(make_job(mixed), teacher)
    entries = entries_of(tmp_path / "out")
    assert entries[0] == given[0]  # nothing was missing
    assert entries[1]["conversations"][:3] == mixed[1]["conversations"] and len(answers_of(entries[1])) == 1
    assert result.answers == 1 + sum(len(entry["conversations"]) for entry in questions[2:])
    generate_answers(make_job(given, answers="all", answers_of_data="given", output=tmp_path / "all"), teacher)
    generate_answers(make_job(output=tmp_path / "missing"), teacher)
    assert entries_of(tmp_path / "all") == entries_of(tmp_path / "missing")


def test_a_dump_takes_the_answers(make_job: MakeJob, golden_images: Path, teacher: MobileVLM, tmp_path: Path) -> None:
    job = make_job(answers="missing")
    generate_answers(job, teacher)
    store = StoreConfig(path=tmp_path / "store", attention="none", vision_top="none", vision_all="none")
    teacher_config = job.teacher.model_copy(update={"sanity": "off"})
    data = (DataSet(path=tmp_path / "out", images=golden_images),)
    dump(DumpJob(data=data, template="v1", max_tokens=None, teacher=teacher_config, store=store), teacher)
    reader = StoreReader(tmp_path / "store")
    assert not reader.quarantined
    by_id = {record.id: record for record in reader}
    for entry in entries_of(tmp_path / "out"):
        turns = by_id[entry["id"]].conversations
        assert [turn["value"] for turn in turns] == [turn["value"] for turn in entry["conversations"]]
        assert all(turn.get("generated", False) == (turn["from"] == "gpt") for turn in turns)


def test_unusable_samples_are_counted_and_listed(
    make_job: MakeJob, questions: Entries, teacher: MobileVLM, tmp_path: Path
) -> None:
    broken = [
        questions[0],
        {**questions[1], "image": "absent.png"},
        {"id": "no turns", "conversations": []},
        {"id": "two marks", "image": "coffee.png", "conversations": [{"from": "human", "value": "<image><image>"}]},
        {"id": "long", "conversations": [{"from": "human", "value": "word " * 400}]},
    ]
    statuses = []
    control = DumpControl(progress=statuses.append)
    result = generate_answers(make_job(broken, max_tokens=300, control=control), teacher)
    assert [entry["id"] for entry in entries_of(tmp_path / "out")] == [questions[0]["id"]]
    assert [(index, name) for index, name, _ in result.unusable] == [
        (1, questions[1]["id"]), (2, "no turns"), (3, "two marks"), (4, "long"),
    ]  # fmt: skip
    reasons = [reason for _, _, reason in result.unusable]
    assert "absent.png" in reasons[0] and "max_tokens 300" in reasons[3]
    assert (statuses[-1].samples, statuses[-1].errors, statuses[-1].total) == (5, 4, 5)
    # a shard without entries has no file of answers and is done all the same
    assert sorted(path.name for path in (tmp_path / "out" / "answers").iterdir()) == ["00000000.jsonl"]
    assert generate_answers(make_job(broken, max_tokens=300)).shards_written == 0
    with pytest.raises(InputError, match=r"absent\.png.*generate\.on_error is 'stop'"):
        generate_answers(make_job(broken, on_error="stop", output=tmp_path / "stops"), teacher)
    with pytest.raises(InputError, match=r"3 unusable samples, generate\.max_errors is 2"):
        generate_answers(make_job(broken, max_errors=2, output=tmp_path / "few"), teacher)
    with pytest.raises(InputError, match="none of 2 samples is usable, the first"):
        generate_answers(make_job(broken[1:3], output=tmp_path / "none"), teacher)


def test_restored_images_are_answered_when_asked_for(
    make_job: MakeJob, questions: Entries, golden_images: Path, teacher: MobileVLM, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(golden_images, images)
    (images / questions[0]["image"]).unlink()
    job = make_job([*questions, {"id": "no turns", "conversations": []}])
    job = replace(job, data=(replace(job.data[0], images=images),))
    result = generate_answers(job, teacher)
    assert (len(result.unusable), result.retryable) == (2, 1)
    assert result.unusable[0][2].endswith("then run `alignkd generate CONFIG --retry-unusable`")
    notices: list[str] = []
    again = replace(job, retry_unusable=True, control=DumpControl(notice=notices.append))
    assert generate_answers(again).shards_written == 0
    shutil.copy(golden_images / questions[0]["image"], images)
    result = generate_answers(again, teacher)
    assert (result.shards_written, len(result.unusable), result.retryable) == (1, 1, 0)
    assert "1 of 1; shards that are written again: 1" in notices[-1]
    unbroken = replace(job, generate=job.generate.model_copy(update={"output": tmp_path / "unbroken"}))
    generate_answers(unbroken, teacher)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "unbroken")


def test_an_answer_that_leaves_no_usable_conversation_is_listed(
    make_job: MakeJob, questions: Entries, teacher: MobileVLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = iter(["", "an <image>", "a ASSISTANT: b", "fine"])
    monkeypatch.setattr(MobileVLMPreparation, "decode", lambda self, ids: next(texts))
    asked = {"conversations": [{"from": "human", "value": "a colour?"}]}
    result = generate_answers(make_job([{"id": f"{n}", **asked} for n in range(4)], batch=1), teacher)
    assert [name for _, name, _ in result.unusable] == ["0", "1", "2"]
    assert "answer to question 1 is empty" in result.unusable[0][2]
    assert all("unusable with the teacher's answer: " in reason for _, _, reason in result.unusable[1:])
    assert [answers_of(entry) for entry in entries_of(tmp_path / "out")] == [["fine"]]


def test_a_question_that_leaves_little_room_gets_a_short_answer(
    make_job: MakeJob, questions: Entries, teacher: MobileVLM, preparation: MobileVLMPreparation, tmp_path: Path
) -> None:
    text_only = [entry for entry in questions if "image" not in entry]
    turns = [Turn(turn["from"], turn["value"]) for turn in text_only[0]["conversations"]]
    length = preparation.build_question(turns, ()).positions.length
    generate_answers(make_job(text_only[:1], max_tokens=length + 2), teacher)
    (entry,) = entries_of(tmp_path / "out")
    assert [t["generated"]["tokens"] for t in entry["conversations"] if "generated" in t][-1] == 2
    with pytest.raises(InputError, match=f"question has {length} tokens, which leaves no room .* within {length}"):
        generate_answers(make_job(text_only[:1], max_tokens=length, output=tmp_path / "full"), teacher)


def test_batches_that_do_not_fit_are_halved(
    make_job: MakeJob, teacher: MobileVLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generate_answers(make_job(batch=1, output=tmp_path / "expected"), teacher)
    embed = MobileVLM.embed

    def embed_few(self: MobileVLM, batch: Any, vision: Any) -> Tensor:
        if len(batch.lengths_B) > 1:
            raise torch.OutOfMemoryError("no room")
        return embed(self, batch, vision)

    monkeypatch.setattr(MobileVLM, "embed", embed_few)
    notices: list[str] = []
    result = generate_answers(make_job(batch=4, shard_size=4, control=DumpControl(notice=notices.append)), teacher)
    assert result.halved_batches > 0 and any("was halved" in notice for notice in notices)
    assert entries_of(tmp_path / "out") == entries_of(tmp_path / "expected")


def test_a_folder_goes_on_where_it_was_and_refuses_other_settings(
    make_job: MakeJob, questions: Entries, teacher: MobileVLM, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    generate_answers(make_job(), teacher)
    whole = bytes_of(out)
    assert generate_answers(make_job()).shards_written == 0
    for lost in ("answers/00000001.jsonl", "shards/00000000.json"):
        (out / lost).unlink()
        assert generate_answers(make_job(), teacher).shards_written == 1
        assert bytes_of(out) == whole
    for changed, message in (
        ({"max_new_tokens": 5}, r"settings\.max_new_tokens is 4, now 5; run with what"),
        ({**SAMPLED, "temperature": 1.0, "top_p": 1.0}, r"settings\.sampling is 'greedy', now 'sample'"),
        ({"shard_size": 3}, "shard_size is 2, now 3"),
        ({"max_tokens": 999}, r"settings\.max_tokens is 2048, now 999"),
        ({"entries": questions[1:]}, r"data\.sources is .*choose another generate\.output"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            generate_answers(make_job(**changed), teacher)
        assert "\n" not in str(refused.value) and "generation.json" in str(refused.value)
    assert bytes_of(out) == whole


def test_damaged_files_are_named(make_job: MakeJob, teacher: MobileVLM, tmp_path: Path) -> None:
    generate_answers(make_job(), teacher)
    for name, content, message in (
        ("shards/00000000.json", '{"shard": 0}', "not the report of a shard .* remove it and run again"),
        ("generation.json", "{", "not written by `alignkd generate`"),
        ("generation.json", '{"version": 9}', "version is 9, this alignkd reads 1"),
        ("generation.json", '{"version": 1, "num_samples": 0}', "not written by"),
    ):
        (tmp_path / "out" / name).write_text(content)
        with pytest.raises(InputError, match=f"{name}: {message}"):
            generate_answers(make_job(), teacher)


def test_data_sets_with_image_folders_of_their_own(
    make_job: MakeJob, questions: Entries, golden_images: Path, teacher: MobileVLM, tmp_path: Path
) -> None:
    sets = []
    for number, entry in enumerate(questions[:2]):
        folder = tmp_path / "pictures" / f"{number}"
        folder.mkdir(parents=True)
        shutil.copy(golden_images / entry["image"], folder)
        (tmp_path / f"{number}.json").write_text(json.dumps([entry]))
        sets.append(DataSet(path=tmp_path / f"{number}.json", images=folder, answers="missing"))
    result = generate_answers(replace(make_job(), data=tuple(sets)), teacher)
    assert result.images == str(tmp_path / "pictures")
    answers = open_data(DataSet(path=tmp_path / "out", images=tmp_path / "pictures"))
    assert [sample.images for sample in answers] == [(f"{n}/{questions[n]['image']}",) for n in range(2)]
    assert all((tmp_path / "pictures" / sample.images[0]).exists() for sample in answers)


def test_data_files_that_hold_images_are_refused(
    make_job: MakeJob, golden_images: Path, teacher: MobileVLM, tmp_path: Path
) -> None:
    picture = base64.b64encode((golden_images / "coffee.png").read_bytes()).decode()
    entry = {"id": "a", "image": picture, "conversations": [{"from": "human", "value": "<image>"}]}
    with pytest.raises(InputError, match=r"questions\.json: holds the images itself.*data convert --images-out"):
        generate_answers(make_job([entry]), teacher)
    assert not (tmp_path / "out").exists()
