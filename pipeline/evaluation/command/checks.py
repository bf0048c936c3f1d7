"""What `alignkd run` checks of the section `eval` before a teacher runs."""

from pathlib import Path

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.config.recipes import load_stages
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.evaluation.command.configured import evaluations
from alignkd.pipeline.evaluation.run import check_data


def check_benchmarks(path: Path) -> None:
    """Refuse benchmarks of any stage that cannot be asked or scored, before the first teacher runs.

    Raises:
        InputError: one line on what is missing or does not belong together.
    """
    checked: set[tuple[Path, str]] = set()
    for stage in load_stages(path, "run"):
        section = stage.config.eval
        for name in section.names if section is not None else ():
            assert section is not None
            if (section.data, name) not in checked:
                check_data(name, section.data)
            checked.add((section.data, name))


def check_baseline(config: RunConfig) -> None:
    """Refuse a baseline that does not exist, before the teacher of the stage runs; no weights are read.

    Raises:
        InputError: no such checkpoint, or of no family.
    """
    if config.eval is not None and config.eval.baseline is not None:
        settings = evaluations(config)["baseline"]
        _ = PlannedModel(settings.checkpoint, settings.vision_config, settings.processor).config
