"""The checkpoint that `eval.baseline` names: a student of another run, or any other."""

from pathlib import Path

from alignkd.pipeline.config.checkpoint_config import PlannedModel, vision_config_of
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.vlm.errors import InputError


def baseline_vision_config(config: RunConfig) -> Path | None:
    """Folder with the vision tower's config.json: that of the run that trained the baseline, else the student's."""
    assert config.eval is not None and config.eval.baseline is not None and config.student is not None
    return vision_config_of(config.eval.baseline) or config.student.vision_config


def check_baseline(config: RunConfig) -> None:
    """Refuse a baseline that does not exist, before any model runs; no weights are read.

    Raises:
        InputError: no such checkpoint, or of no family.
    """
    if config.eval is None or config.eval.baseline is None:
        return
    assert config.student is not None
    try:
        _ = PlannedModel(config.eval.baseline, baseline_vision_config(config), config.student.processor).config
    except InputError as error:
        raise InputError(f"eval.baseline: {error}") from error
