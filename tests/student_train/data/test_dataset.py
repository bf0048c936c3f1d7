"""A cached sample is only used if the student would read exactly what the teacher read."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import StoreReader
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation


@pytest.fixture
def reader(exact_store: Path) -> StoreReader:
    return StoreReader(exact_store)


@pytest.fixture
def own_images(tmp_path: Path, images_folder: Path) -> Path:
    shutil.copytree(images_folder, tmp_path / "images")
    return tmp_path / "images"


def test_example_and_record_belong_together(
    reader: StoreReader, student_builder: MobileVLMPreparation, images_folder: Path
) -> None:
    dataset = CachedDataset(reader, student_builder, images_folder)
    for position in range(len(dataset)):
        example, record = dataset[position]
        assert example.input_ids.tolist() == record.input_ids.tolist()
        assert len(example.images) == record.num_images


def test_missing_image(reader: StoreReader, student_builder: MobileVLMPreparation, own_images: Path) -> None:
    (own_images / "coffee.png").unlink()
    dataset = CachedDataset(reader, student_builder, own_images)
    with pytest.raises(SampleError, match=r"coffee\.png: image cannot be read .*restore the file") as error:
        dataset[reader.find(id="ft-0")[0]]
    assert "\n" not in str(error.value)


def test_changed_image(reader: StoreReader, student_builder: MobileVLMPreparation, own_images: Path) -> None:
    """Still a good image, but not the one the teacher saw."""
    shutil.copyfile(own_images / "chelsea.png", own_images / "coffee.png")
    dataset = CachedDataset(reader, student_builder, own_images)
    with pytest.raises(SampleError, match=r"coffee\.png: sha256 is [0-9a-f]{64}, the teacher saw [0-9a-f]{64}"):
        dataset[reader.find(id="ft-0")[0]]


def test_another_template_tokenises_differently(reader: StoreReader, golden_folder: Path, images_folder: Path) -> None:
    plain = load_preparation(golden_folder / "student", template="plain", vision_config=golden_folder / "clip")
    dataset = CachedDataset(reader, plain, images_folder)
    with pytest.raises(
        SampleError, match=r"sample 'ft-0' \(index 0\): input_ids differs: \d+ values in the student, 15\d"
    ):
        dataset[reader.find(id="ft-0")[0]]


def test_one_different_label(
    reader: StoreReader, student_builder: MobileVLMPreparation, images_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MobileVLMPreparation.build

    def off_by_one(self: MobileVLMPreparation, *args: Any) -> Any:
        example = original(self, *args)
        example.labels[-1] += 1
        return example

    monkeypatch.setattr(MobileVLMPreparation, "build", off_by_one)
    dataset = CachedDataset(reader, student_builder, images_folder)
    with pytest.raises(SampleError, match=r"labels differs: 3 at position \d+ in the student, 2 in the store"):
        dataset[0]


def test_overlong_sample_is_named(reader: StoreReader, golden_folder: Path, images_folder: Path) -> None:
    short = load_preparation(
        golden_folder / "student", template="v1", vision_config=golden_folder / "clip", max_tokens=150
    )
    with pytest.raises(SampleError, match=r"sample 'ft-1' .*max_tokens 150"):
        CachedDataset(reader, short, images_folder)[reader.find(id="ft-1")[0]]
