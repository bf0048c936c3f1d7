"""`alignkd layers` for models of transformers, against the figures of a store that the same teacher wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layer_figures import assert_same_figures, result

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("family", "is_hybrid", "has_grid"),
    [("qwen2_5_vl", False, False), ("lfm2_vl", True, False), ("llava", False, True)],
)
def test_any_family(
    family: str,
    is_hybrid: bool,
    has_grid: bool,
    checkpoint: Callable[..., Path],
    write_family_config: Callable[..., Path],
    alignkd_here: Run,
    tmp_path: Path,
) -> None:
    config = write_family_config(tmp_path, checkpoint(family))
    live = result(alignkd_here, "layers", config, "--out", tmp_path / "a.png")
    numbers = [found["layer"] for found in live["layers"]]
    assert (len(numbers) < live["num_layers"]) == is_hybrid
    assert (live["common_tokens"] is not None) == has_grid
    for found in live["layers"]:
        assert (found["informative"] is not None) == has_grid and 0 < found["vision_mass"] < 1
    config = write_family_config(tmp_path, checkpoint(family), attention={"layers": numbers, "codec": "float32"})
    assert alignkd_here("dump", config).returncode == 0
    (stored,) = result(alignkd_here, "shards", "stats", tmp_path / "store")["attention_layers"]
    assert stored["records"] == live["samples"]
    assert_same_figures(live["layers"], stored["layers"])
    table = alignkd_here("layers", config).stdout
    assert ("mix several grids" if has_grid else "layers are ranked by sharpness") in table
