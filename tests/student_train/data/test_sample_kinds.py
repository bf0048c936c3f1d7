"""Samples that lack some or all terms are trained on those they have, and counted by kind."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.data.samples.sample_kinds import SampleKinds
from alignkd.student_train.job import TrainJob
from alignkd.student_train.trainer import train
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


UNANSWERED = "nobody knows"


@pytest.fixture(scope="module", autouse=True)
def unsupervised_conversations() -> Iterator[None]:
    """Samples whose labels are all masked: no template of today makes one, but a store may hold one."""
    original = MobileVLMPreparation.build

    def build(self: MobileVLMPreparation, turns: Any, files: Any) -> Example:
        example = original(self, turns, files)
        if turns[-1].value != UNANSWERED:
            return example
        tokens = self._place(example.input_ids.tolist(), [IGNORE_LABEL] * len(example.labels))
        return replace(example, labels=tokens.labels, positions=tokens.positions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MobileVLMPreparation, "build", build)
        yield


@pytest.fixture(scope="module")
def mixed_store(dump: Any, v1_samples: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with an answer, an image without a supervised token, and text alone."""
    image, text = (next(s for s in v1_samples if ("image" in s) == wanted) for wanted in (True, False))
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": UNANSWERED}]
    samples = [image, {**image, "id": "open", "conversations": turns}, text]
    return dump(tmp_path_factory.mktemp("stores") / "mixed", samples)  # type: ignore[no-any-return]


def test_every_kind_alone_and_together(mixed_store: Path, make_job: MakeJob, read_metrics: ReadMetrics) -> None:
    reader = StoreReader(mixed_store)
    job = make_job(mixed_store, steps=9, micro_batch=1)
    result = train(job)
    by_id = dict(zip(reader.ids, range(3), strict=True))
    order, seen = SampleOrder(3, job.train.seed, 1), []
    for step, line in enumerate(read_metrics(job.train.output)):
        (position,) = order.global_batch_indices(step)
        seen.append(int(position))
        has_image, supervised = reader.num_images[position] > 0, reader.num_supervised[position] > 0
        assert (line["attention"] is not None) == (line["vision_all"] is not None) == has_image
        assert (line["supervised"] is not None) == (line["logit"] is not None) == supervised
        assert not line["skipped"] and line["loss"] > 0
        assert line["samples_one_image"] == has_image and line["samples_text_only"] == (not has_image)
        assert line["samples_unsupervised"] == (position == by_id["open"])
    assert sorted(seen) == sorted([0, 1, 2] * 3)
    assert result.samples_by_kind == {"one_image": 6, "several_images": 0, "text_only": 3, "unsupervised": 3}


def test_a_mixed_batch_has_every_term(mixed_store: Path, make_job: MakeJob, read_metrics: ReadMetrics) -> None:
    job = make_job(mixed_store, steps=2, micro_batch=3, gradient_checkpointing=True)
    train(job)
    for line in read_metrics(job.train.output):
        assert all(line[term] > 0 for term in job.train.losses.weights)
        assert [line[f"samples_{kind}"] for kind in ("one_image", "text_only", "unsupervised")] == [2, 1, 1]


def test_counts_of_any_length_of_run_follow_from_the_order(many_store: Path) -> None:
    reader = StoreReader(many_store)
    kinds, order = SampleKinds([reader], 144), SampleOrder(len(reader), 7, 4)
    positions = np.concatenate([order.global_batch_indices(step) for step in range(6)])
    assert kinds.up_to(6, order) == kinds(positions)
    assert kinds(positions)["one_image"] + kinds(positions)["text_only"] == 24
    assert kinds.tokens(positions) == sum(int(reader.sequence_lengths[i]) for i in positions)
    longer = SampleKinds([reader], 576)
    assert longer.tokens(positions) - kinds.tokens(positions) == 432 * kinds(positions)["one_image"]
    assert kinds.up_to(0, order) == dict.fromkeys(kinds(positions), 0)
