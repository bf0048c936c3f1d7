"""Training without `data.images` reads the images where the dump found them, and compares them as ever."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from alignkd.storage import StoreReader
from alignkd.storage.schema.read_from import ReadFrom, image_folders
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.errors import TrainError
from alignkd.student_train.run.checks.fit import check_images
from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.open import open_checkpoint


def test_the_folder_of_the_dump_is_the_default(
    write_config: Callable[..., Path],
    alignkd_here: Callable[..., Any],
    golden: Path,
    golden_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = write_config()
    done = alignkd_here("dump", config)
    assert done.returncode == 0, done.stderr
    reader = StoreReader(yaml.safe_load(config.read_text())["store"]["path"])
    preparation = open_checkpoint(golden / "student", vision_config=golden / "clip").preparation("v1")
    settings = yaml.safe_load(config.read_text())
    del settings["data"]["images"]
    config.write_text(yaml.safe_dump(settings))
    done = alignkd_here("train", config)
    assert done.returncode == 0, done.stderr
    by_default, given = (CachedDataset(reader, preparation, folder) for folder in (None, golden_images))
    for position in range(len(reader)):
        (ours, _), (theirs, _) = by_default[position], given[position]
        for one, two in zip(ours.images, theirs.images, strict=True):
            np.testing.assert_array_equal(one["pixel_values"], two["pixel_values"])

    def named(folder: Path | None) -> StoreReader:
        read_from = ReadFrom(images=image_folders([(0, folder)]))
        other = StoreReader(reader.path)
        monkeypatch.setattr(other, "manifest", reader.manifest.changed(read_from=read_from))
        return other

    with pytest.raises(TrainError, match=r"data.images is missing; set it"):
        check_images(named(None), None, {})
    with pytest.raises(TrainError, match=f"and {tmp_path}/gone, where the dump found them, is not a folder; set it"):
        check_images(named(tmp_path / "gone"), None, {})
    check_images(named(None), golden_images, {})
    # what lies there now may be another image
    position = int(np.flatnonzero(reader.has_image)[0])
    image = reader[position].images[0]
    (tmp_path / image).write_bytes(next(f for f in golden_images.iterdir() if f.name != image).read_bytes())
    with pytest.raises(SampleError, match="the teacher saw"):
        CachedDataset(named(tmp_path), preparation, None)[position]
