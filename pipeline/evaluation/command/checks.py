"""What `alignkd run` checks of the section `eval` before a teacher runs."""

from pathlib import Path

from alignkd.pipeline.config.recipes import load_stages
from alignkd.pipeline.evaluation.command.finished import kept_evaluation
from alignkd.pipeline.evaluation.run import check_data
from alignkd.pipeline.runs.stages import finished_before
from alignkd.vlm.errors import InputError


def check_benchmarks(path: Path) -> None:
    """Refuse benchmarks of any stage that cannot be asked or scored, before the first teacher runs.

    The data of a stage that is trained and evaluated already may have been removed.

    Raises:
        InputError: one line on what is missing or does not belong together.
    """
    checked: set[tuple[Path, str]] = set()
    for stage in load_stages(path, "run"):
        section = stage.config.eval
        if section is None:
            continue
        try:
            for name in section.names:
                if (section.data, name) not in checked:
                    check_data(name, section.data)
                checked.add((section.data, name))
        except InputError:
            if finished_before(stage.config) is None or kept_evaluation(stage.config) is None:
                raise
