"""Stores of the golden samples, and of some with no and several images; each is dumped once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stem_runs import ENTRIES

from alignkd.storage import StoreReader

Dump = Callable[..., StoreReader]


@pytest.fixture(scope="session")
def dump(tmp_path_factory: pytest.TempPathFactory, golden: Path, golden_images: Path, alignkd_here: Any) -> Dump:
    """`dump(name, **store)`: a store of the samples, float32, with these keys of the section `store`.

    Args:
        who: the checkpoint that is the teacher, `teacher` or `student`.
    """
    folder = tmp_path_factory.mktemp("browse")
    conversations = folder / "data.json"
    conversations.write_text(json.dumps([*json.loads((golden / "v1.json").read_text()), *ENTRIES]))

    def made(name: str, who: str = "teacher", **store: Any) -> StoreReader:
        model = {"checkpoint": str(golden / who), "vision_config": str(golden / "clip"), "dtype": "float32"}
        data = {"conversations": str(conversations), "images": str(golden_images), "template": "v1"}
        config = folder / f"{name}.yaml"
        config.write_text(
            yaml.safe_dump({"data": data, "teacher": model, "store": {"path": str(folder / name), **store}})
        )
        done = alignkd_here("dump", config)
        assert done.returncode == 0, done.stderr
        return StoreReader(folder / name)

    return made


@pytest.fixture(scope="session")
def exact(dump: Dump) -> StoreReader:
    """Attention of layers 0 and 1, hidden states, nothing rounded; images by their paths."""
    return dump(
        "exact", attention={"layers": [0, 1], "codec": "float32"}, logits={"kind": "hidden", "dtype": "float32"}
    )


@pytest.fixture(scope="session")
def compact(dump: Dump) -> StoreReader:
    """Nucleus, 8 bits, images inside."""
    return dump("compact", profile="compact", inputs="embed")


@pytest.fixture(scope="session")
def stem(dump: Dump) -> StoreReader:
    """As `exact`, but the attention follows from the stem."""
    logits = {"kind": "hidden", "dtype": "float32"}
    return dump("stem", profile="stem", attention={"layers": [0, 1]}, logits=logits)


@pytest.fixture(scope="session")
def other(dump: Dump) -> StoreReader:
    """As `exact`, of another teacher: the golden student."""
    logits = {"kind": "hidden", "dtype": "float32"}
    return dump("other", who="student", attention={"layers": [0, 1], "codec": "float32"}, logits=logits)
