"""`alignkd eval`: a checkpoint's answers to the benchmarks of the paper's Table 1, and their scores."""

from pathlib import Path
from typing import Any

import click

from alignkd.evaluation.folder import LAYOUTS
from alignkd.pipeline.console.command_with_subcommands import CommandWithSubcommands
from alignkd.pipeline.console.errors import clean_errors, fail
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, print_json, say
from alignkd.pipeline.evaluation.score_command import score

NAMES = tuple(LAYOUTS)


def _names(context: click.Context, option: click.Parameter, given: str) -> tuple[str, ...]:
    """The names between the commas, in their order and without repetition."""
    names = tuple(dict.fromkeys(given.split(",")))
    for name in names:
        if name not in NAMES:
            raise click.BadParameter(f"{name!r} is none of {', '.join(NAMES)}")
    return names


@click.group(cls=CommandWithSubcommands, invoke_without_command=True, subcommand_metavar="")
@click.argument("checkpoint", required=False)
@click.option(
    "--benchmark",
    "benchmarks",
    metavar="NAME[,NAME...]",
    callback=_names,
    default=",".join(NAMES),
    show_default=True,
    help="Benchmarks, in the order in which they run.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder that holds a folder per benchmark (docs/evaluation.md), or the folder of the only benchmark.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of answers and scores; by default eval/NAME.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float16",
    show_default=True,
    help="Dtype of weights, pixels and logits; the paper's is float16.",
)
@click.option(
    "--batch", type=click.IntRange(1, 128), default=16, show_default=True, help="Largest number of prompts in a batch."
)
@click.option("--device", help="Torch device, such as cpu or cuda:1; by default a GPU if there is one.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Ask only so many first questions: no number of the benchmark."
)
@click.option("--worker", metavar="RANK/COUNT", help="Which of several workers this is; a launcher sets it itself.")
@click.option("--vision-config", type=click.Path(path_type=Path), help="Folder with the vision tower's config.json.")
@click.option(
    "--processor",
    type=click.Choice(["auto", "pil"]),
    default="auto",
    show_default=True,
    help="Image processor of models of transformers; pil needs no torchvision.",
)
@click.option("--force", is_flag=True, help="Start again if --out was made with other settings.")
@json_option
@clean_errors
def eval(as_json: bool, checkpoint: str | None, data: Path | None, out: Path | None, **settings: Any) -> None:
    """Evaluate a checkpoint on the benchmarks of the paper.

    CHECKPOINT answers the questions of each benchmark greedily. The answers are written in the format of the original
    scripts and scored by their rules. You can stop the command at any time and run it again: only questions without an
    answer are asked. Several processes share the questions, as with dump. `alignkd eval score` scores answers that
    another program wrote; write ./score if the checkpoint's folder is called score.

    Example: alignkd eval mtgv/MobileVLM_V2-1.7B --data benchmark_data
    """
    if checkpoint is None or data is None:
        raise click.UsageError("give CHECKPOINT, to evaluate it, and --data, the folder of the benchmarks")
    with heavy_imports():
        from alignkd.pipeline.config.checkpoint_config import vision_config_of
        from alignkd.pipeline.evaluation.run import run_eval
        from alignkd.pipeline.evaluation.settings import EvalSettings, model_name
        from alignkd.pipeline.evaluation.table import result_lines, unusable_lines
        from alignkd.pipeline.runs.teacher.shards_report import ending_when_abandoned
        from alignkd.teacher_dump.operation.stops import end_process

    settings["vision_config"] = settings["vision_config"] or vision_config_of(checkpoint)
    out = out or Path("eval") / model_name(checkpoint)
    with ending_when_abandoned():
        end = run_eval(EvalSettings(checkpoint=checkpoint, data=data, out=out, **settings))
    if as_json:
        print_json(end.results)
    else:
        for line in unusable_lines(end.results):
            click.echo(line, err=True)
        for line in result_lines(end.results, end.published):
            click.echo(line)
    if end.interrupted_by:
        say("stopped; run the same command again to resume")
        end_process(128 + end.interrupted_by)
    if end.num_unusable:
        fail(
            f"{end.num_unusable} questions could not be asked, see {out / 'results.json'}; restore what is missing and "
            "run the same command again, which asks these only"
        )


eval.add_command(score)
