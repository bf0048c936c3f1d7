"""A store with the attention of several layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Codecs, LogitsCodec
from alignkd.storage.schema.targets.attention import attention_target

LayersStore = Callable[..., Path]


@pytest.fixture(scope="session")
def dump_layers(dump: Callable[..., Path]) -> LayersStore:
    """dump_layers(path, samples, layers=(0, 1), ...): attention of these layers, all heads, both kinds of pairs."""

    def write(
        path: Path, samples: Any, *, layers: tuple[int, ...] = (0, 1), codec: Any = "float32", **settings: Any
    ) -> Path:
        codecs = Codecs(attention="none", vision_top="none", vision_all="none", logits=LogitsCodec(kind="none"))
        more = tuple(attention_target(pairs, layers=layers, heads=8, codec=codec) for pairs in ("tqv", "vqv"))
        return dump(path, samples, codecs=codecs, more=more, **settings)

    return write


@pytest.fixture(scope="session")
def layers_store(dump_layers: LayersStore, many_samples: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples with the attention of both layers."""
    return dump_layers(tmp_path_factory.mktemp("stores") / "layers", many_samples)
