"""`alignkd shards show` and `stats` of a store with the attention of several layers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from alignkd.pipeline.shards.view.attention.attention_map import attention_map
from alignkd.storage import StoreReader
from alignkd.storage.tools.layers.rows import distributions, sharpness
from alignkd.storage.tools.layers.stored import stored_attention
from alignkd.vlm.errors import InputError

Run = Callable[..., Any]
LAYERS = [0, 2, 3]


@pytest.fixture
def dumped(write_config: Callable[..., Path], alignkd_here: Run) -> Callable[..., Path]:
    """`dumped(layers=[1], pairs="vqv")`: a store of the golden samples with this attention."""

    def dump(**attention: Any) -> Path:
        config = write_config(store={"attention": attention, "logits": {"kind": "none"}}, drop=("train", "student"))
        assert alignkd_here("dump", config).returncode == 0
        return Path(yaml.safe_load(config.read_text())["store"]["path"])

    return dump


def test_each_layer_is_shown(
    dumped: Callable[..., Path], alignkd_here: Run, golden_images: Path, tmp_path: Path
) -> None:
    reader = StoreReader(dumped(layers=LAYERS, pairs="all", heads={"groups": 4}, codec="float32"))
    record = next(record for record in reader if record.has_image)
    values = np.asarray(record.more["attention_layers_tqv"])  # [R, layers * heads, C]
    assert values.shape[1] == 3 * 4
    for number, layer in enumerate(LAYERS):
        shown = attention_map(record, reader.manifest, str, head=None, token=None, layer=layer)
        np.testing.assert_allclose(shown.values.ravel(), values[:, 4 * number : 4 * number + 4].mean((0, 1)), rtol=1e-5)
        one = attention_map(record, reader.manifest, str, head=2, token=None, layer=layer)
        np.testing.assert_allclose(one.values.ravel(), values[:, 4 * number + 2].mean(0), rtol=1e-5)
        assert f"layer {layer}, head 2" in one.title
    for wrong, message in (({"layer": 1}, "tqv attention of layers 0, 2, 3"), ({"head": 4}, "heads 0..3")):
        with pytest.raises(InputError, match=message):
            attention_map(record, reader.manifest, str, **{"head": None, "token": None, **wrong})

    arguments = ("shards", "show", reader.path, "--index", record.index)
    picture = ("--png", tmp_path / "a.png", "--images", golden_images, "--layer")
    assert alignkd_here(*arguments, *picture, 3).returncode == 0
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.format == "PNG"
    # the layer is checked before the images are looked for
    done = alignkd_here(*arguments, "--png", tmp_path / "b.png", "--layer", 1)
    assert done.returncode == 1 and "--layer is 1" in done.stderr and not (tmp_path / "b.png").exists()

    page = alignkd_here(*arguments).stdout
    assert page.count("tqv layer ") == page.count("vqv layer ") == 3
    rows = json.loads(alignkd_here(*arguments, "--json").stdout)["attention_layers"]
    assert [(row["pairs"], row["layer"]) for row in rows] == [(p, n) for p in ("tqv", "vqv") for n in LAYERS]
    probs, mass = distributions(values[:, 4:8])
    assert rows[1]["vision_mass"] == pytest.approx(mass.mean()) and rows[1]["heads"] == 4
    assert rows[1]["sharpness"] == pytest.approx(sharpness(probs).mean())


def test_short_and_long_form_of_the_first_layer_agree(
    dumped: Callable[..., Path], write_config: Callable[..., Path], alignkd_here: Run, tmp_path: Path
) -> None:
    long = dumped(layers=[0], codec="float32")
    store = {"path": str(tmp_path / "short"), "logits": {"kind": "none"}}
    config = write_config("short.yaml", store=store, drop=("train", "student"))
    assert alignkd_here("dump", config).returncode == 0
    (one,), (other,) = (
        json.loads(alignkd_here("shards", "stats", store, "--json").stdout)["attention_layers"]
        for store in (long, tmp_path / "short")
    )
    assert one.pop("target") == "attention_layers_tqv" and other.pop("target") == "attention"
    assert one == other and one["layers"][0]["informative"] is not None


def test_what_is_not_drawn_is_named(dumped: Callable[..., Path], alignkd_here: Run, golden_images: Path) -> None:
    store = dumped(layers=[1], pairs="vqv", heads="mean")
    reader = StoreReader(store)
    index = next(record.index for record in reader if record.has_image)
    assert [target.pairs for target in stored_attention(reader.manifest)] == ["vqv"]
    done = alignkd_here("shards", "show", store, "--index", index, "--png", store.parent / "a.png", "--images",
                        golden_images)  # fmt: skip
    assert done.returncode == 1 and "has vqv attention, not that of text queries" in done.stderr
    table = alignkd_here("shards", "stats", store).stdout
    assert "attention_layers_vqv: vqv attention by layer" in table


def test_visual_advantage_of_a_record(write_config: Callable[..., Path], alignkd_here: Run) -> None:
    """The figures of a store with a counterfactual pass, against sums by hand."""
    config = write_config(store={"counterfactual": {}}, drop=("train", "student"))
    assert alignkd_here("dump", config).returncode == 0
    store = yaml.safe_load(config.read_text())["store"]["path"]
    kinds = set()
    for record in StoreReader(store):
        arguments = ("shards", "show", store, "--index", record.index)
        found = json.loads(alignkd_here(*arguments, "--json").stdout)["visual_advantage"]
        kinds.add(record.has_image)
        if not record.has_image:
            assert found is None
            continue
        values = [float(value) for value in np.asarray(record.more["visual_advantage"])]
        assert found == {
            "positions": len(values),
            "mean": pytest.approx(sum(values) / len(values)),
            "smallest": min(values),
            "largest": max(values),
            "share_above_0_1": pytest.approx(sum(value > 0.1 for value in values) / len(values)),
        }
        line = next(line for line in alignkd_here(*arguments).stdout.splitlines() if "above 0.1 at" in line)
        assert f"smallest {min(values):.3g}, largest {max(values):.3g}" in line
        break
    assert True in kinds
