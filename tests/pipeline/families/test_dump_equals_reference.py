"""`alignkd dump` and `shards export` give what transformers computes with eager attention, one sample at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_vlm
import tiny_data
import tiny_families
from numpy.typing import NDArray
from safetensors.numpy import load_file

Arrays = dict[str, NDArray[Any]]
BACKENDS = ("zarr", "webdataset")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Dumped:
    """A store that the command line wrote, and the reference values of every sample."""

    store: Path
    reference: list[Arrays]
    export: Callable[..., Arrays]


@pytest.fixture(scope="module", params=tiny_families.NINE)
def dumped(
    request: pytest.FixtureRequest,
    data: tiny_data.TinyData,
    checkpoint: Callable[..., Path],
    write_family_config: Callable[..., Path],
    alignkd_here: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Dumped]:
    """One store per family; the two layouts take turns."""
    folder = tmp_path_factory.mktemp("dump")
    teacher = checkpoint(request.param, seed=3, heads=4, hidden_size=64)
    backend = BACKENDS[tiny_families.NINE.index(request.param) % 2]
    config = write_family_config(folder, teacher, backend=backend)
    done = alignkd_here("dump", config)
    assert done.returncode == 0, done.stdout + done.stderr

    def export(*which: object) -> Arrays:
        out = folder / "record.safetensors"
        written = alignkd_here("shards", "export", folder / "store", *which, "--out", out, "--force")
        assert written.returncode == 0, written.stdout + written.stderr
        return load_file(out)

    samples = reference_vlm.from_file(data.conversations, data.images, None)
    values, _ = reference_vlm.values_of(teacher, samples)
    reference = [
        {name.partition(".")[2]: array for name, array in values.items() if name.startswith(f"{index}.")}
        for index in range(len(samples))
    ]
    yield Dumped(folder / "store", reference, export)


def test_export_equals_reference(dumped: Dumped) -> None:
    for index, wanted in enumerate(dumped.reference):
        found = dumped.export("--index", index)
        np.testing.assert_array_equal(found["input_ids"], wanted["input_ids"], err_msg=f"ids of {index}")
        rows = check_labels(found, wanted)
        close(found["logits"][rows], wanted["logits"])
        np.testing.assert_array_equal(found["vision_positions"], wanted["vision_positions"])
        np.testing.assert_array_equal(found["tqv_query_positions"], wanted["query_positions"])
        if len(wanted["vision_positions"]):
            close(found["vision_embeddings"], wanted["vision_embeddings"])
            close(found["tqv_attention"], wanted["tqv"])
            check_focus(found, wanted)
        else:
            assert not {"vision_embeddings", "tqv_attention", "vision_top_index"} & set(found)


def test_ids_with_any_characters(dumped: Dumped, data: tiny_data.TinyData) -> None:
    for index, entry in enumerate(data.entries):
        by_id, by_index = dumped.export("--id", entry["id"]), dumped.export("--index", index)
        assert by_id.keys() == by_index.keys()
        for name, values in by_id.items():
            np.testing.assert_array_equal(values, by_index[name], err_msg=f"{entry['id']}: {name}")


def test_store_is_whole(dumped: Dumped, alignkd_here: Callable[..., Any]) -> None:
    verified = alignkd_here("shards", "verify", dumped.store)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def check_labels(found: Arrays, wanted: Arrays) -> NDArray[np.int64]:
    """Labels are the ids that the assistant writes, and nowhere else but on white space directly after an answer.

    Returns:
        The rows of the stored logits that predict the reference's labels.
    """
    labelled = np.flatnonzero(found["labels"] != -100)
    np.testing.assert_array_equal(found["labels"][labelled], found["input_ids"][labelled])
    optional = np.intersect1d(labelled, wanted["optional_positions"])
    np.testing.assert_array_equal(np.setdiff1d(labelled, optional), wanted["label_positions"])
    np.testing.assert_array_equal(found["supervised_positions"] + 1, labelled)
    return np.searchsorted(labelled, wanted["label_positions"])


def check_focus(found: Arrays, wanted: Arrays) -> None:
    """The 16 vision tokens with the most attention; tokens of equal mass may stand for each other."""
    mass = wanted["tqv"].mean(0).sum(0)
    top = found["vision_top_index"]
    assert len(set(top.tolist())) == len(top) == min(16, len(mass))
    np.testing.assert_allclose(mass[top], mass[wanted["focus"]], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(found["vision_top_embeddings"], found["vision_embeddings"][top])


def close(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    """Equal to a ten-thousandth of the largest value that is at least 1."""
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE * scale, rtol=0)
