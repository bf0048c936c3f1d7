"""What `alignkd run` checks of the section `eval` before a teacher runs."""

from pathlib import Path

from alignkd.pipeline.config.recipes import load_stages
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
