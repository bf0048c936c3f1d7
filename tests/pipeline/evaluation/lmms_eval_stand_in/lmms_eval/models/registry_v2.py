"""Finds the models of plug-ins by their entry points."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points

from lmms_eval.api.model import lmms


@dataclass(frozen=True)
class ModelManifest:
    """Where the class of a model is."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class ModelRegistryV2:
    """Manifests by the name of their model."""

    def __init__(self) -> None:
        self._manifests: dict[str, ModelManifest] = {}

    def load_entrypoint_manifests(self, group: str = "lmms_eval.models") -> None:
        for point in entry_points(group=group):
            payload = point.load()
            found = payload() if callable(payload) else payload
            for manifest in found if isinstance(found, Iterable) else [found]:
                assert isinstance(manifest, ModelManifest)
                self._manifests[manifest.model_id] = manifest

    def get_model_class(self, model_name: str) -> type[lmms]:
        manifest = self._manifests[model_name]
        path = manifest.chat_class_path or manifest.simple_class_path
        assert path is not None
        module, name = path.rsplit(".", 1)
        found = getattr(importlib.import_module(module), name)
        if not issubclass(found, lmms) or found.is_simple != (manifest.chat_class_path is None):
            raise TypeError(f"{path} is no model of this kind")
        return found
