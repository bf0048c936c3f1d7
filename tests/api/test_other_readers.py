"""zarr and webdataset over a real dump with records of no, one and two images."""

from pathlib import Path

import numpy as np

import alignkd


def test_zarr_and_webdataset_read_the_same_floats_as_our_reader(dumped: Path) -> None:
    import webdataset  # type: ignore[import-untyped]
    import zarr

    records = {record.index: record for record in alignkd.open_store(dumped / "store-tar")}
    tars = sorted(map(str, (dumped / "store-tar").glob("shards/*/*.tar")))
    decoder = alignkd.webdataset_decoder(dumped / "store-tar")
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).map(decoder))
    assert {sample["json"]["index"] for sample in samples} == records.keys()
    with_image = [sample for sample in samples if records[sample["json"]["index"]].has_image]
    for sample in with_image:
        expected = records[sample["json"]["index"]]
        assert expected.attention_float32 is not None and expected.vision_embeddings_float32 is not None
        np.testing.assert_array_equal(sample["attention"].ravel(), expected.attention_float32.ravel())
        brings = sample["json"]["image_record"] == sample["__key__"]
        assert ("vision_embeddings" in sample) == brings
        if brings:
            np.testing.assert_array_equal(
                sample["vision_embeddings"].ravel(), expected.vision_embeddings_float32.ravel()
            )
    assert any(sample["json"]["image_record"] != sample["__key__"] for sample in with_image)

    rows = [
        alignkd.float_view(zarr.open_group(folder, mode="r"))["attention"][:]
        for folder in sorted((dumped / "store-zarr" / "shards").glob("*/"))
    ]
    ours = [record.attention_float32 for record in alignkd.open_store(dumped / "store-zarr") if record.has_image]
    np.testing.assert_array_equal(
        np.concatenate(rows).ravel(), np.concatenate([values.ravel() for values in ours if values is not None])
    )
