"""Which images are encoded, together with which, and how long they are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.targets import seen_images
from alignkd.teacher_dump.targets.host_copies import HostCopies
from alignkd.teacher_dump.targets.seen_images import SeenImages, image_keys
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Vision
from alignkd.vlm.inputs.batch import ImageTensors
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.position_map import spliced_position_map

SIZES = {"a": 2, "b": 3, "c": 5, "d": 1}  # vision tokens of an image alone; one more beside others


@dataclass
class Tower:
    """Gives each token of an image the image's number; an image beside others has one token more."""

    calls: list[list[str]] = field(default_factory=list)
    tokens_more: int = 0
    device = torch.device("cpu")

    def encode_images(self, images: Sequence[ImageTensors], samples: Sequence[int] | None = None) -> Vision:
        assert samples is not None and list(samples) == sorted(samples)
        names = ["abcd"[int(image["pixel_values"][0, 0])] for image in images]
        self.calls.append(names)
        beside = [samples.count(sample) > 1 for sample in samples]
        counts = [SIZES[name] + is_beside + self.tokens_more for name, is_beside in zip(names, beside, strict=True)]
        rows = [torch.full((count, 2), float("abcd".index(name))) for name, count in zip(names, counts, strict=True)]
        return Vision(embeddings_PD=torch.cat(rows), tokens_of_image=tuple(counts))


def sample(images: str, *, fixed: bool = False) -> Prepared:
    """A sample with these images and one position of text before and after them."""
    counts = [SIZES[name] + (len(images) > 1 and not fixed) for name in images]
    is_vision = np.array([False, *[True] * sum(counts), False])
    labels = np.full(len(is_vision), -100, np.int32)
    positions = spliced_position_map(is_vision, labels, counts, blocks_of_images=fixed)
    arrays = [{"pixel_values": np.full((4, 8), "abcd".index(name), np.float32)} for name in images]
    return Prepared(
        place=0,
        sample=Sample(index=0, id="0", images=tuple(images), turns=()),
        example=Example(input_ids=labels, labels=labels, positions=positions),
        images=tuple(arrays),
        key="0" * 64,
        image_files=(b"",) * len(images),
        image_hashes=tuple(images),
    )


def seen_by(tower: Any, codec: str = "none") -> SeenImages:
    return SeenImages(tower, codec, HostCopies(torch.device("cpu")))


def test_each_distinct_image_once_and_those_of_several_samples_once_per_window() -> None:
    tower = Tower()
    seen = seen_by(tower)
    window = [sample("a"), sample("b"), sample("a"), sample(""), sample("a")]
    seen.begin_window(window)
    for batch in (window[:3], window[3:]):
        found = seen.see(batch)
        assert {key[0] for key in found} == {image for one in batch for image in one.image_hashes}
        for (name, _), image in found.items():
            assert image.vision.embeddings_PD.tolist() == [["abcd".index(name)] * 2] * SIZES[name]
        seen.end_batch(batch)
    assert tower.calls == [["a", "b"]]
    seen.see([window[0]])  # no later sample needed it
    assert tower.calls == [["a", "b"], ["a"]]


def test_the_same_image_alone_and_beside_others_is_encoded_twice() -> None:
    """All images of a sample are given together, repeated ones too, so that the model can count them."""
    tower = Tower()
    seen = seen_by(tower)
    window = [sample("a"), sample("ab"), sample("aab"), sample("ba")]
    seen.begin_window(window)
    found = seen.see(window)
    assert tower.calls == [["a", "a", "b", "a", "a", "b"]]
    for one in window:
        counts = [found[key].vision.tokens_of_image[0] for key in image_keys(one)]
        assert tuple(counts) == one.example.positions.tokens_of_image


def test_where_every_image_has_the_same_tokens_its_neighbours_do_not_matter() -> None:
    tower = Tower()
    seen = seen_by(tower)
    window = [sample("a", fixed=True), sample("aba", fixed=True)]
    seen.begin_window(window)
    seen.see(window)
    assert tower.calls == [["a", "b"]]


def test_images_at_once_are_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    window = [sample("a"), sample("b"), sample("cd"), sample("d")]
    for name, value in (("IMAGES_AT_ONCE", 2), ("BYTES_AT_ONCE", 2 * 4 * 8 * 4)):
        with monkeypatch.context() as patch:
            patch.setattr(seen_images, name, value)
            tower = Tower()
            seen = seen_by(tower)
            seen.begin_window(window)
            assert len(seen.see(window)) == 5
            assert tower.calls == [["a", "b"], ["c", "d"], ["d"]]
    monkeypatch.setattr(seen_images, "BYTES_AT_ONCE", 1)
    tower = Tower()
    assert len(seen_by(tower).see(window)) == 5  # a sample that exceeds the bounds alone is encoded all the same
    assert tower.calls == [["a"], ["b"], ["c", "d"], ["d"]]


def test_another_number_of_tokens_than_the_processor_says_is_refused() -> None:
    seen = seen_by(Tower(tokens_more=1))
    with pytest.raises(InputError, match=r"the teacher gives \(3,\) vision tokens per image, its processor \(2,\)"):
        seen.see([sample("a")])


@pytest.mark.parametrize(
    ("failure", "expected"), [("upsampling needs a size above 0", InputError), ("out of memory", RuntimeError)]
)
def test_an_image_on_which_the_model_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, failure: str, expected: type[Exception]
) -> None:
    def fails(*_: object) -> Vision:
        raise RuntimeError(failure)

    tower = Tower()
    monkeypatch.setattr(tower, "encode_images", fails)
    seen = seen_by(tower)
    with pytest.raises(expected, match=failure) as raised:
        seen.see([sample("a")])
    assert type(raised.value) is expected and ("sha256" in str(raised.value)) is (expected is InputError)
