"""The entry point of the group `lmms_eval.models`, by which lmms-eval finds the model `alignkd`."""

from typing import Any

MODEL_ID = "alignkd"
MODEL_CLASS = "alignkd.pipeline.evaluation.lmms_eval.model.AlignKDModel"


def manifest() -> Any:
    """The `ModelManifest` of the model; lmms-eval calls this, so it is installed."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path=MODEL_CLASS)
