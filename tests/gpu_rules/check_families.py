"""Training models of transformers: one device, the CPU's numbers, and no unknown wait of the project's own code.

What transformers itself waits for (positions of images, masks) is its own and not listed.
"""

from collections import Counter
from pathlib import Path

import pytest
import tiny_data
import tiny_families
from check_training import Outcome, differences, forward_and_backward
from known_waits import FAMILY_MICRO_BATCH, unknown
from pretend_device import LOG, move, pretend_device

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.collate import collate
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

# Waits of a micro-batch of four samples with four images, nearly all of them of transformers (docs/devices.md).
FAMILIES = {"qwen3_vl": 113, "gemma3": 2, "smolvlm": 15}


@pytest.mark.parametrize(("name", "most"), FAMILIES.items())
def test_terms_and_gradients_are_the_cpus(name: str, most: int, registered: object, tmp_path: Path) -> None:
    data = tiny_data.write(tmp_path / "data")
    teacher = tiny_families.build(name, tmp_path / "teacher", seed=1, hidden_size=64, heads=4)
    store = tmp_path / "store"
    dump(
        DumpJob(
            data=(DataSet(path=data.conversations, images=data.images),),
            template=None,
            max_tokens=None,
            teacher=TeacherConfig(checkpoint=str(teacher), sanity="off", device="cpu"),
            store=StoreConfig(path=str(store), profile="compact"),
        )
    )
    job = TrainJob(
        student=tiny_families.build(name, tmp_path / "student", seed=2),
        images=data.images,
        store=store,
        train=TrainConfig(output=tmp_path / "out", steps=1, gradient_checkpointing=True),
    )
    checkpoint = job.open_student()
    dataset = open_samples(job, checkpoint)
    for places in ([0, 1, 2, 3], [dataset.reader.num_images.tolist().index(0)]):  # mixed, and text alone
        batch = collate(
            [dataset[place] for place in places],
            targets=job.train.losses.needed_targets.values(),
            attention_pairs="tqv",
        )
        student = build_student(job, checkpoint, dataset.reader)
        here = forward_and_backward(student, batch)
        student.zero_grad()
        with pretend_device() as device:
            move(student)
            LOG.clear()
            there = forward_and_backward(student, batch.to(device))
        check(here, there)
        assert sum(there.waits.values()) <= most, there.waits


def check(here: Outcome, there: Outcome) -> None:
    assert not LOG.unrepeatable, "train.deterministic could not be used"
    terms, gradients = differences(here, there)
    assert here.gradients.keys() == there.gradients.keys()
    assert terms <= 1e-5 and gradients <= 1e-4
    own = Counter({wait: count for wait, count in there.waits.items() if "transformers" not in wait.place.via})
    problems = unknown(own, FAMILY_MICRO_BATCH, 1)
    assert not problems, "\n".join(problems)
