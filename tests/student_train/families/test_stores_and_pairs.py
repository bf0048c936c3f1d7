"""What a store keeps, and which student it fits, in families whose images have different numbers of tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignkd.storage import StoreReader
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train

POSITIONAL = ("attention", "vision_all", "vision_top")
HIDDEN = {"kind": "hidden", "dtype": "float32"}
COMPACT = {"attention": "sqrt_u8", "vision_top": "from_all", "vision_all": "int8_channel", "logits": HIDDEN}
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
FamilyJob = Callable[..., TrainJob]
FamilyStore = Callable[..., Path]


def opened(job: TrainJob) -> tuple[CachedDataset, DistilledStudent]:
    checkpoint = job.open_student()
    dataset = open_samples(job, checkpoint)
    return dataset, build_student(job, checkpoint, dataset.reader)


def terms_of(dataset: CachedDataset, student: DistilledStudent, places: list[int]) -> dict[str, LossSum]:
    manifest = dataset.reader.manifest
    batch = collate(
        [dataset[place] for place in places],
        targets=student.losses.needed_targets.values(),
        attention_pairs=manifest.codecs.attention_pairs,
    )
    with torch.no_grad():
        return student(batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("qwen3_vl", {}),
        ("qwen3_vl", COMPACT | {"backend": "webdataset", "inputs": "embed"}),
        ("smolvlm", COMPACT | {"attention_pairs": "vqv"}),
        ("mistral3", {"attention_pairs": "tqt"}),
        ("llava_next", {"vision_top": "int8_channel"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "exact",
)
def test_a_mixed_batch_is_the_sum_of_its_samples(
    name: str, store: dict[str, Any], family_job: FamilyJob, family_store: FamilyStore
) -> None:
    dataset, student = opened(family_job(name, store=family_store(name, **store)))
    places = list(range(len(dataset)))
    together, alone = terms_of(dataset, student, places), [terms_of(dataset, student, [place]) for place in places]
    expected = GlobalCounts([dataset.reader], student.model.config, LossConfig().weights)(np.array(places))
    for term, found in together.items():
        assert found.count == sum(one[term].count for one in alone) == expected[term] > 0, term
        each = [float(one[term].total) for one in alone]
        assert float(found.total) == pytest.approx(sum(each), rel=2e-5), term
        assert found.parts.tolist() == pytest.approx(each, rel=1e-4, abs=1e-5), term


def test_rounded_targets_are_near_the_exact_ones(family_job: FamilyJob, family_store: FamilyStore) -> None:
    """Every image is decoded by its own scales: one of another image's would be far off."""
    exact, compact = (opened(family_job("qwen3_vl", store=family_store("qwen3_vl", **s))) for s in ({}, COMPACT))
    places = {index: place for place, index in enumerate(exact[0].reader.dataset_index.tolist())}
    for place, index in enumerate(compact[0].reader.dataset_index.tolist()):
        found, expected = terms_of(*compact, [place]), terms_of(*exact, [places[index]])
        for term, reference in expected.items():
            assert found[term].count == reference.count
            assert float(found[term].total) == pytest.approx(float(reference.total), rel=3e-2), (term, index)


@pytest.mark.parametrize("name", ["gemma4", "qwen3_vl"])
def test_hidden_states_give_the_teachers_logits(name: str, family_job: FamilyJob, family_store: FamilyStore) -> None:
    """Also through the soft cap of Gemma 4, and where the heads are padded differently."""
    off = dict.fromkeys(POSITIONAL, 0.0)
    only = {"attention": "none", "vision_top": "none", "vision_all": "none"}
    full, hidden = (
        opened(family_job(name, store=family_store(name, **only, **logits), losses=off))
        for logits in ({}, {"logits": HIDDEN})
    )
    assert full[0].reader.ids[:] == hidden[0].reader.ids[:]
    places = list(range(len(full[0])))
    found, expected = terms_of(*hidden, places)["logit"], terms_of(*full, places)["logit"]
    assert found.count == expected.count > 0
    assert float(found.total) == pytest.approx(float(expected.total), rel=1e-5)


@pytest.mark.parametrize("logits", [{"kind": "full", "dtype": "float32"}, HIDDEN, {"kind": "topk", "top_k": 8}])
def test_heads_that_are_padded_differently(
    logits: dict[str, Any],
    family_job: FamilyJob,
    family_store: FamilyStore,
    checkpoint: Callable[..., Path],
    read_metrics: ReadMetrics,
) -> None:
    store = family_store("qwen3_vl", logits=logits)
    shapes = StoreReader(store).manifest.shapes
    entries, columns = shapes.num_tokens, shapes.vocab_size + 32
    assert entries is not None and entries < shapes.vocab_size
    student = checkpoint("qwen3_vl", seed=4, hidden_size=32, heads=2, vocab_size=columns)
    job = family_job("qwen3_vl", store=store, student=student, steps=6, micro_batch=10, learning_rate=2e-3)
    assert opened(job)[1].num_tokens == entries
    train(job)
    lines = read_metrics(job.train.output)
    assert all(lines[-1][term] < lines[0][term] for term in LossConfig().weights)

    small = checkpoint("qwen3_vl", seed=4, hidden_size=32, heads=2, vocab_size=entries)
    assert opened(family_job("qwen3_vl", store=store, student=small))[1].num_tokens == entries


def test_a_student_of_another_tokenizer_is_refused(
    family_job: FamilyJob, family_store: FamilyStore, checkpoint: Callable[..., Path]
) -> None:
    job = family_job("qwen3_vl", store=family_store("gemma3"))
    with pytest.raises(ValueError, match=r"becomes|tokenizer") as error:
        train(job)
    assert "\n" not in str(error.value)


def test_a_student_with_other_vision_tokens_learns_from_logits(
    family_job: FamilyJob, checkpoint: Callable[..., Path], read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Its processor makes more or fewer tokens of an image, so that ids and positions differ."""
    student = tmp_path / "student"
    shutil.copytree(checkpoint("qwen3_vl", seed=4, hidden_size=32, heads=2), student)
    changed = 0
    for file in ("preprocessor_config.json", "processor_config.json"):
        if (student / file).exists():
            settings = json.loads((student / file).read_text())
            image = settings.get("image_processor", settings)
            if "size" in image:
                image["size"] = {"shortest_edge": 4096, "longest_edge": 8192}
                changed += 1
            (student / file).write_text(json.dumps(settings))
    assert changed
    with pytest.raises(
        TrainError, match=r"the tokens of an image are as .* in the store, as .* in the student"
    ) as error:
        train(family_job("qwen3_vl", student=student))
    assert "\n" not in str(error.value) and "losses.attention, losses.vision_all, losses.vision_top" in str(error.value)

    job = family_job(
        "qwen3_vl", student=student, losses=dict.fromkeys(POSITIONAL, 0.0), steps=3, micro_batch=10, learning_rate=5e-3
    )
    dataset = open_samples(job, job.open_student())
    pairs = [dataset[place] for place in range(len(dataset))]
    assert any(example.positions.length != record.sequence_length for example, record in pairs)
    train(job)
    lines = read_metrics(job.train.output)
    assert lines[-1]["logit"] < lines[0]["logit"] and lines[-1]["supervised"] < lines[0]["supervised"]
