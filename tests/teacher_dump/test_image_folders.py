"""The folders of several data sets as a dump lists them for its manifest: by the samples that are taken of each."""

import json
from pathlib import Path

from alignkd.storage.schema.read_from import ReadFrom
from alignkd.teacher_dump.data_parts import image_folders_of
from alignkd.vlm.data.data_list import DataList
from alignkd.vlm.data.source import DataSet


def test_each_sample_has_the_folder_of_its_data_set(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    sets = []
    for name, count, images, share in (("a", 4, "x", 1.0), ("b", 40, None, 0.5), ("c", 3, "y", 1.0)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([{"id": str(number), "conversations": turns} for number in range(count)]))
        sets.append(DataSet(path=path, images=None if images is None else tmp_path / images, share=share))
    samples = DataList(sets)
    taken = [source.num_samples for source in samples.sources]
    assert 0 < taken[1] < 40
    read_from = ReadFrom(images=image_folders_of(samples, sets))
    found = [read_from.image_folder(index) for index in range(len(samples))]
    assert found == [tmp_path / "x"] * 4 + [None] * taken[1] + [tmp_path / "y"] * 3
    assert found == [samples[index].folder for index in range(len(samples))]
