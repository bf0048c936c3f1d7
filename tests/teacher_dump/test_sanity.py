"""Checks of a teacher before the first shard: the demo's trained one passes, and is stopped when it is made wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkd.pipeline.demo.models import TEACHER_CHECKPOINT
from alignkd.pipeline.demo.world.dataset import write_dataset
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.tools.verify.plausibility import check_plausibility
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.sanity_report import SampleScores, judge_advantage, judge_images, judge_labels, judge_shuffled
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Vision
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

NUM_SCENES = 36  # a few more than the check of images needs
MakeDemoJob = Callable[..., DumpJob]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, num_scenes=NUM_SCENES, pool="held_out", seed=5, questions_per_scene=3)
    return folder


@pytest.fixture
def demo_job(scenes: Path, tmp_path: Path) -> MakeDemoJob:
    """`demo_job(change=None, sanity="stop", heard=[])`: `change` edits the data's entries, `heard` gets the notices."""

    def make(
        change: Callable[[list[Any]], Any] | None = None,
        *,
        sanity: Any = "stop",
        heard: list[str] | None = None,
        **store: Any,
    ) -> DumpJob:
        entries = json.loads((scenes / "conversations.json").read_text())
        if change is not None:
            change(entries)
        data = tmp_path / "data.json"
        data.write_text(json.dumps(entries))
        return DumpJob(
            data=(DataSet(path=data, images=scenes / "images"),),
            template="v1",
            max_tokens=2048,
            teacher=TeacherConfig(checkpoint=str(TEACHER_CHECKPOINT), sanity=sanity),
            store=StoreConfig(path=tmp_path / "store", profile="compact", shard_size=8, **store),
            control=DumpControl(notice=([] if heard is None else heard).append),
        )

    return make


def shuffle_images(entries: list[Any]) -> None:
    with_image = [entry for entry in entries if "image" in entry]
    images = [entry["image"] for entry in with_image]
    for entry, image in zip(with_image, images[3:] + images[:3], strict=True):
        entry["image"] = image


def outcomes(job: DumpJob) -> dict[str, str]:
    return {found.name: found.outcome for found in dump(job).sanity}


def test_a_trained_teacher_passes_every_check_once(demo_job: MakeDemoJob) -> None:
    job = demo_job()
    assert outcomes(job) == {"batch": "passed", "labels": "passed", "images": "passed"}
    (Path(job.store.path) / "commits" / "00000001.json").unlink()
    assert outcomes(job) == {}  # the store is under way


def test_images_of_other_samples_stop_the_run(demo_job: MakeDemoJob) -> None:
    heard: list[str] = []
    with pytest.raises(
        InputError, match=r"teacher check 'images' failed: loss .* paired with the wrong samples"
    ) as error:
        dump(demo_job(shuffle_images, heard=heard))
    assert "\n" not in str(error.value) and "teacher.sanity is 'stop'" in str(error.value)
    assert len(heard) == 1 and heard[0].startswith("device cpu (")


def test_warn_says_so_and_goes_on_off_is_silent(demo_job: MakeDemoJob) -> None:
    heard: list[str] = []
    job = demo_job(shuffle_images, sanity="warn", heard=heard)
    result = dump(job)
    assert result.num_records == result.num_samples and len(heard) == 2 and "'images' failed" in heard[1]
    for commit in (Path(job.store.path) / "commits").iterdir():
        commit.unlink()
    assert outcomes(demo_job(shuffle_images, sanity="off", heard=heard)) == {} and len(heard) == 3


def test_a_blind_teacher(demo_job: MakeDemoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    true = MobileVLM.encode_images

    def blind(self: MobileVLM, images: Any, samples: Any = None) -> Vision:
        return true(self, [{"pixel_values": image["pixel_values"] * 0} for image in images], samples)

    monkeypatch.setattr(MobileVLM, "encode_images", blind)
    with pytest.raises(InputError, match=r"'images' failed: .* the teacher ignores its images"):
        dump(demo_job())


def test_a_blind_teacher_has_no_visual_advantage(demo_job: MakeDemoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store is intact; the targets of the counterfactual pass show what is wrong."""
    true = MobileVLM.encode_images

    def blind(self: MobileVLM, images: Any, samples: Any = None) -> Vision:
        return true(self, [{"pixel_values": image["pixel_values"] * 0} for image in images], samples)

    seeing = demo_job(counterfactual={"remove": "image"})
    assert outcomes(seeing)["advantage"] == "passed"
    found = check_plausibility(LocalFiles(Path(seeing.store.path)))
    assert not found.problems and found.advantage.mean > 0.1 and found.advantage.clear > 50

    monkeypatch.setattr(MobileVLM, "encode_images", blind)
    heard: list[str] = []
    job = demo_job(sanity="warn", heard=heard, counterfactual={"remove": "image"})
    shutil.rmtree(job.store.path)
    assert outcomes(job)["advantage"] == "failed"
    assert any("'advantage' failed" in line and "do not depend on the image" in line for line in heard)
    (problem,) = check_plausibility(LocalFiles(Path(job.store.path))).problems
    assert "the teacher ignores its images" in problem.message


def test_advantage_is_judged_by_its_spread() -> None:
    random = np.random.default_rng(0)
    gaining = [0.3 + random.normal(0, 1, 9) for _ in range(40)]
    assert judge_advantage(gaining, 1e-3).outcome == "passed"
    assert judge_advantage([values - values.mean() for values in gaining], 1e-3).outcome == "not checked"
    assert judge_advantage([values * 1e-4 for values in gaining], 1e-3).outcome == "failed"
    assert judge_advantage(gaining[:20], 1e-3).outcome == "not checked"


@pytest.mark.parametrize(("shift", "beside"), [(1, "previous"), (-1, "next")])
def test_states_taken_one_position_beside(
    shift: int, beside: str, demo_job: MakeDemoJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = MobileVLM.decoder_states
    monkeypatch.setattr(MobileVLM, "decoder_states", lambda self, embeds: true(self, embeds).roll(shift, dims=1))
    with pytest.raises(InputError, match=rf"'labels' failed: .* of those of the {beside} position: off by one"):
        dump(demo_job())


def test_padding_that_is_seen(demo_job: MakeDemoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    true = MobileVLM.decoder_states

    def sees_padding(self: MobileVLM, embeds: Tensor) -> Tensor:
        hidden = true(self, embeds)
        return hidden + 0.05 * hidden[:, -1:]

    monkeypatch.setattr(MobileVLM, "decoder_states", sees_padding)
    with pytest.raises(InputError, match=r"'batch' failed: hidden states of 4 samples differ by .* rounding"):
        dump(demo_job())


def test_a_random_teacher_is_not_judged(demo_job: MakeDemoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    true = MobileVLM.decoder_states

    def forget(self: MobileVLM, embeds: Tensor) -> Tensor:
        true(self, embeds)  # whose first layer is looked at
        generator = torch.Generator().manual_seed(0)
        return 0.1 * torch.randn(embeds.shape[1:], generator=generator).expand_as(embeds)

    monkeypatch.setattr(MobileVLM, "decoder_states", forget)
    assert outcomes(demo_job()) == {"batch": "passed", "labels": "not checked", "images": "not checked"}


def test_too_few_images_are_not_judged(demo_job: MakeDemoJob) -> None:
    def text_and_few_images(entries: list[Any]) -> None:
        del entries[20:]

    assert outcomes(demo_job(text_and_few_images)) == {"batch": "passed", "labels": "passed", "images": "not checked"}


def scores(own: np.ndarray, beside: float, entropy: float) -> SampleScores:
    return SampleScores(own_N=own, entropy_N=np.full_like(own, entropy), beside_N2=np.full((len(own), 2), beside))


def test_chance_alone_never_stops_a_run_that_sees_a_little() -> None:
    """A gain of 0.3 nats with a spread of 1 over 64 samples is seen; none at all is not."""
    random = np.random.default_rng(0)
    for _ in range(200):
        noise = random.normal(0.0, 1.0, 64)
        wrong = [scores(np.full(9, -2.0), -9.0, 0.5) for _ in range(64)]
        right = [scores(np.full(9, -1.5 + 0.5 * extra), -9.0, 0.5) for extra in noise]
        assert judge_images(right, wrong, 512).outcome == "passed"
        assert judge_images(wrong, wrong, 512).outcome == "failed"


def test_a_teacher_that_is_worse_than_guessing_is_not_judged_by_its_images() -> None:
    """Random weights with large values: sure of wrong tokens, whatever the image."""
    random = np.random.default_rng(3)
    right, wrong = ([scores(-20 + random.normal(0, 5, 9), -20.0, 0.5) for _ in range(40)] for _ in range(2))
    found = judge_images(right, wrong, 512)
    assert found.outcome == "not checked" and "above log V" in found.message


def test_samples_that_could_not_be_scored_with_another_image_are_counted() -> None:
    right, wrong = ([scores(np.full(9, own), -9.0, 0.5) for _ in range(40)] for own in (-1.0, -2.0))
    found = judge_images(right, wrong, 512, left_out=3)
    assert found.outcome == "passed" and "3 more not scored: unusable with another image" in found.message
    few = judge_images(right[:20], wrong[:20], 512, left_out=30)
    assert few.outcome == "not checked" and "20 samples with distinct images, 30 more not scored" in few.message


def test_labels_near_the_edge_are_left_alone() -> None:
    """A neighbour that is a little likelier, by chance or by repetition, is no proof."""
    random = np.random.default_rng(1)
    found = [scores(-3 + random.normal(0, 2, 40), -3.0, 1.0) for _ in range(20)]
    assert judge_labels(found, 512).outcome == "not checked"
    assert judge_labels([scores(np.full(40, -6.0), -2.0, 1.0) for _ in range(20)], 512).outcome == "failed"
    # both unlikely: a teacher that knows neither is none of this check's business
    assert judge_labels([scores(np.full(40, -9.0), -6.0, 1.0) for _ in range(20)], 512).outcome == "not checked"


def test_a_teacher_that_repeats_its_input_is_not_judged() -> None:
    """States one position beside fail, unless the neighbour is preferred even where the order is random."""
    random = np.random.default_rng(1)
    preferring, equal = ([scores(random.normal(own, 1.0, 9), -0.1, 0.5) for _ in range(40)] for own in (-9.0, -0.1))
    failed = judge_labels(preferring, 512)
    assert failed.outcome == "failed" and judge_shuffled(failed, equal, 512) == failed
    repeating = judge_shuffled(failed, preferring, 512)
    assert repeating.outcome == "not checked" and "repeats its input" in repeating.message
