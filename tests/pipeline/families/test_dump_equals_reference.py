"""`alignkd dump` and `shards export` give what transformers computes with eager attention, one sample at a time."""

from collections.abc import Callable
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
# beside the nine: attention begins at layer 2; a soft cap and a table per layer; an answer ends with the next turn
FAMILIES = (*tiny_families.NINE, "lfm2_vl", "gemma4", "glm4v")
BACKENDS = ("zarr", "webdataset")
TOLERANCE = 1e-4
# name in the exported file -> name in the reference
EXACT = {
    "input_ids": "input_ids",
    "vision_positions": "vision_positions",
    "tqv_query_positions": "query_positions",
}
Dump = Callable[..., "Dumped"]


@dataclass(frozen=True)
class Dumped:
    """A store that the command line wrote, and the reference values of every sample."""

    store: Path
    reference: list[Arrays]
    run: Callable[..., Any]

    def export(self, *which: object) -> Arrays:
        """One record, as `shards export` writes it."""
        out = self.store.parent / "record.safetensors"
        written = self.run("shards", "export", self.store, *which, "--out", out, "--force")
        assert written.returncode == 0, written.stdout + written.stderr
        return load_file(out)


@pytest.fixture(scope="module")
def dump(
    data: tiny_data.TinyData,
    checkpoint: Callable[..., Path],
    write_family_config: Callable[..., Path],
    alignkd_here: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Dump:
    """`dump(name, backend=..., processor=...)`: the store of a family's checkpoint."""

    def run(name: str, *, backend: str, processor: str | None = None) -> Dumped:
        folder = tmp_path_factory.mktemp("dump")
        teacher = checkpoint(name, seed=3, heads=4, hidden_size=64)
        config = write_family_config(folder, teacher, {"processor": processor} if processor else {}, backend=backend)
        done = alignkd_here("dump", config)
        assert done.returncode == 0, done.stdout + done.stderr
        samples = reference_vlm.from_file(data.conversations, data.images, None)
        values, _ = reference_vlm.values_of(teacher, samples, backend=processor)
        by_sample: list[Arrays] = [{} for _ in samples]
        for key, array in values.items():
            number, _, array_name = key.partition(".")
            by_sample[int(number)][array_name] = array
        return Dumped(folder / "store", by_sample, alignkd_here)

    return run


@pytest.fixture(scope="module", params=FAMILIES)
def dumped(request: pytest.FixtureRequest, dump: Dump) -> Dumped:
    """One store per family; the two layouts take turns."""
    return dump(request.param, backend=BACKENDS[FAMILIES.index(request.param) % 2])


def test_export_equals_reference(dumped: Dumped, data: tiny_data.TinyData) -> None:
    """Most samples are asked for by their ids, in which any character may be."""
    for index, (wanted, entry) in enumerate(zip(dumped.reference, data.entries, strict=True)):
        found = dumped.export(*(("--id", entry["id"]) if index % 3 else ("--index", index)))
        check_record(found, wanted)


def test_processor_without_torchvision(dump: Dump) -> None:
    """`processor: pil` gives slightly other pixels: those of the image processor of that kind."""
    found = dump("smolvlm", backend="webdataset", processor="pil")
    check_record(found.export("--index", 0), found.reference[0])


def test_store_is_whole(dumped: Dumped, alignkd_here: Callable[..., Any]) -> None:
    verified = alignkd_here("shards", "verify", dumped.store)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def check_record(found: Arrays, wanted: Arrays) -> None:
    """Compare an exported record with the reference values of its sample."""
    for name, other in EXACT.items():
        np.testing.assert_array_equal(found[name], wanted[other], err_msg=name)
    rows = check_labels(found, wanted)
    close(found["logits"][rows], wanted["logits"])
    if len(wanted["vision_positions"]):
        close(found["vision_embeddings"], wanted["vision_embeddings"])
        close(found["tqv_attention"], wanted["tqv"])
        check_focus(found, wanted)
    else:
        assert not {"vision_embeddings", "tqv_attention", "vision_top_index"} & set(found)


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
