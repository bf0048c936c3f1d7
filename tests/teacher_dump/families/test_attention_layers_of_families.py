"""Models of transformers: stored attention of chosen layers is what their own eager attention returns for a sample."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_vlm
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.storage.record.record import as_float32
from alignkd.storage.schema.targets.attention import NAMES, rows_of_layer
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.errors import InputError

Arrays = dict[str, NDArray[Any]]
FamilyJob = Callable[..., DumpJob]
# images in the middle of positions in three axes; a sliding window; a soft cap and a table per layer; two hybrids
FAMILIES = ("qwen2_5_vl", "gemma3", "gemma4", "smolvlm", "lfm2_vl", "qwen3_5")
TOLERANCE = 1e-4
HYBRIDS = ("lfm2_vl", "qwen3_5")


@dataclass(frozen=True)
class Reference:
    """Eager attention of every sample, and the numbers of the layers that have any."""

    samples: list[Arrays]
    layers: list[int]


@pytest.fixture
def reference(family_data: Path, family_teacher: Callable[[str], Path]) -> Callable[[str], Reference]:
    def values(family: str) -> Reference:
        samples = reference_vlm.from_file(family_data / "data.json", family_data / "images", None)
        arrays, meta = reference_vlm.values_of(family_teacher(family), samples, layers=True)
        by_sample: list[Arrays] = [{} for _ in samples]
        for key, array in arrays.items():
            number, _, name = key.partition(".")
            by_sample[int(number)][name] = array
        return Reference(by_sample, meta["attention_layers"])

    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_that_of_eager_attention(
    family_job: FamilyJob, reference: Callable[[str], Reference], family: str
) -> None:
    job = family_job(family, attention={"layers": "0%-100%", "pairs": "all", "codec": "float32"})
    dump(job)
    reader, wanted = StoreReader(job.store.path), reference(family)
    targets = {target.name: target for target in reader.manifest.more if target.kind == "attention"}
    assert {target.layers for target in targets.values()} == {tuple(wanted.layers)}
    assert (family in HYBRIDS) == (wanted.layers[0] > 0) and (len(wanted.layers) > 1 or family in HYBRIDS)
    seen = set()
    for number in range(len(reader)):
        record = reader[number]
        seen.add(record.num_images)
        for pairs, name in NAMES.items():
            if not record.has_image:
                assert name not in record.more
                continue
            expected_AHRC = wanted.samples[record.index][f"{pairs}_layers"]
            for place, layer in enumerate(wanted.layers):
                found_RHC = rows_of_layer(as_float32(record.more[name]), targets[name], layer)
                np.testing.assert_allclose(
                    found_RHC,
                    expected_AHRC[place].transpose(1, 0, 2),
                    atol=TOLERANCE,
                    rtol=1e-3,
                    err_msg=f"{name} {layer}",
                )
    assert seen == {0, 1, 2, 3}


def test_means_of_heads_are_those_of_all_heads(family_job: FamilyJob, tmp_path: Path) -> None:
    readers = []
    for name, kind in (("every", "all"), ("mean", "mean"), ("groups", {"groups": 2})):
        attention = {"layers": [1], "codec": "float32", "heads": kind}
        dump(family_job("gemma3", attention=attention, path=tmp_path / name))
        readers.append(StoreReader(tmp_path / name))
    for one, *others in zip(*readers, strict=True):
        if one.has_image:
            all_heads, *means = (as_float32(record.more[NAMES["tqv"]]) for record in (one, *others))
            for groups, found in zip((1, 2), means, strict=True):
                wanted = np.stack([part.mean(axis=1) for part in np.split(all_heads, groups, axis=1)], axis=1)
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_a_layer_without_attention_is_refused_with_those_that_have_any(family_job: FamilyJob) -> None:
    job = family_job("lfm2_vl", attention={"layers": [0]})
    with pytest.raises(InputError, match=r"decoder layer 0 has no attention; layers with attention are 2"):
        dump(job)
