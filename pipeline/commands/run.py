"""`alignkd run`: every phase of a configuration, one after the other."""

from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--launcher", default="", help="Command that starts the training, such as 'torchrun --nproc-per-node 4'.")
@json_option
@clean_errors
def run(config: Path, launcher: str, as_json: bool) -> None:
    """Dump, verify, train, and evaluate if CONFIG has `eval`.

    Each phase runs in its own process; the stages of a recipe run one after the other. What is finished is skipped.

    Example: alignkd run run.yaml
    """
    with heavy_imports():
        from alignkd.pipeline.config.baseline import check_baseline
        from alignkd.pipeline.config.run_config import RunConfig
        from alignkd.pipeline.evaluation.command.checks import check_benchmarks
        from alignkd.pipeline.evaluation.command.finished import kept_evaluation
        from alignkd.pipeline.models.pair import check_pair
        from alignkd.pipeline.runs.stages import run_stages

    def check(stage: RunConfig) -> None:
        check_pair(stage)
        check_baseline(stage)

    check_benchmarks(config)
    reports = run_stages(config, as_json=as_json, check=check, kept=kept_evaluation, launcher=launcher, say=click.echo)
    if as_json:
        print_json(reports)
