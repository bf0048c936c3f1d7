"""`alignkd eval`: a checkpoint's answers to the benchmarks of the paper's Table 1, and their scores."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from alignkd.evaluation.folder import LAYOUTS
from alignkd.pipeline.console.checkpoint_options import processor_option, vision_config_option
from alignkd.pipeline.console.command_with_subcommands import CommandWithSubcommands
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, print_json
from alignkd.pipeline.evaluation.score_command import score

NAMES = tuple(LAYOUTS)
# options that also hold for a configuration; its section `eval` has keys for the others
_OF_BOTH = ("checkpoint", "stage", "worker", "force", "as_json")


def _names(context: click.Context, option: click.Parameter, given: str) -> tuple[str, ...]:
    """The names between the commas, in their order and without repetition."""
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        if name not in NAMES:
            raise click.BadParameter(f"{name!r} is none of {', '.join(NAMES)}")
    return names


@click.group(cls=CommandWithSubcommands, invoke_without_command=True, subcommand_metavar="")
@click.argument("checkpoint", metavar="CHECKPOINT|CONFIG", required=False)
@click.option("--stage", help="With CONFIG: one stage of a recipe; by default all that have a section eval.")
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
    "--limit",
    type=click.IntRange(min=1),
    help="Ask only the first so many questions; the result is not the benchmark's number.",
)
@click.option("--worker", metavar="RANK/COUNT", help="Which of several workers this is; a launcher sets it itself.")
@vision_config_option
@processor_option
@click.option("--force", is_flag=True, help="Start again if --out was made with other settings.")
@click.option(
    "--status",
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Show what is answered so far in OUT, or of the run with this output folder; change nothing.",
)
@json_option
@clean_errors
@click.pass_context
def eval(
    context: click.Context,
    /,
    as_json: bool,
    checkpoint: str | None,
    stage: str | None,
    data: Path | None,
    out: Path | None,
    status: Path | None,
    **settings: Any,
) -> None:
    """Evaluate a checkpoint on the benchmarks of the paper.

    CHECKPOINT answers the questions of each benchmark greedily. The answers are written in the format of the original
    scripts and scored by their rules. You can stop the command at any time and run it again: only questions without an
    answer are asked; --status shows what is answered so far. Several processes share the questions, as with dump.
    `alignkd eval score` scores answers that another program wrote; write ./score if the checkpoint's folder is called
    score.

    CONFIG is a configuration file: its student is evaluated as its section eval requires.

    Example: alignkd eval mtgv/MobileVLM_V2-1.7B --data benchmark_data
    """
    if status is not None:
        if given := _given(context, ("status", "as_json")):
            raise click.UsageError(f"{', '.join(given)}: --status OUT takes nothing but --json")
        _show_status(status, as_json)
        return
    if checkpoint is not None and _is_configuration(checkpoint):
        if given := _given(context, _OF_BOTH):
            raise click.UsageError(f"{', '.join(given)}: CONFIG has keys for this in its section eval")
        _evaluate_configuration(Path(checkpoint), stage, as_json, worker=settings["worker"], force=settings["force"])
        return
    if checkpoint is None or data is None:
        raise click.UsageError(
            "give CHECKPOINT, to evaluate it, and --data, the folder of the benchmarks; or a configuration file; or "
            "--status OUT, to show the progress of an evaluation"
        )
    if stage is not None:
        raise click.UsageError("--stage needs a configuration file")
    with heavy_imports():
        from alignkd.pipeline.config.checkpoint_config import vision_config_of
        from alignkd.pipeline.evaluation.command.ending import end_if_incomplete, print_result, prints
        from alignkd.pipeline.evaluation.run import run_eval
        from alignkd.pipeline.evaluation.settings import EvalSettings, model_name
        from alignkd.pipeline.runs.teacher.shards_report import ending_when_abandoned

    settings["vision_config"] = settings["vision_config"] or vision_config_of(checkpoint)
    out, reports = out or Path("eval") / model_name(checkpoint), prints(settings["worker"])
    with ending_when_abandoned():
        end = run_eval(EvalSettings(checkpoint=checkpoint, data=data, out=out, **settings))
    if as_json and reports:
        print_json(end.results)
    elif reports:
        click.echo(f"{checkpoint}: answers and scores in {out}")
        print_result(end)
    end_if_incomplete({out: end}, reports=reports)


def _show_status(path: Path, as_json: bool) -> None:
    from alignkd.pipeline.evaluation.status import eval_status, status_lines

    statuses = eval_status(path)
    if as_json:
        print_json([asdict(status) for status in statuses])
        return
    for line in status_lines(statuses):
        click.echo(line)


def _is_configuration(name: str) -> bool:
    """Whether an argument is a configuration file; a checkpoint is a folder or a hub id."""
    return Path(name).is_file() or Path(name).suffix in (".yaml", ".yml")


def _given(context: click.Context, without: Sequence[str]) -> list[str]:
    """The options and the argument on the command line, except some."""
    return [
        parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(context)
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.name not in without
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


def _evaluate_configuration(path: Path, stage: str | None, as_json: bool, *, worker: str | None, force: bool) -> None:
    with heavy_imports():
        from alignkd.pipeline.evaluation.command.configured import evaluate, evaluated_stages
        from alignkd.pipeline.evaluation.command.ending import end_if_incomplete, print_result, prints
        from alignkd.pipeline.runs.teacher.shards_report import ending_when_abandoned

    results: dict[str, Any] = {}
    ends, reports = {}, prints(worker)
    for found in evaluated_stages(path, stage):
        of_stage = results if found.name is None or stage is not None else results.setdefault(found.name, {})
        with ending_when_abandoned():
            for model, out, end in evaluate(found.config, worker=worker, force=force):
                of_stage[model], ends[out] = end.results, end
                if reports and not as_json:
                    click.echo(f"{model} {end.results['checkpoint']}: answers and scores in {out}")
                    print_result(end)
        if any(end.interrupted_by for end in ends.values()):
            break
        assert found.config.train is not None
        if reports and not as_json:
            click.echo(f"side by side: alignkd report {found.config.train.output} --out FOLDER")
    if as_json and reports:
        print_json(results)
    end_if_incomplete(ends, reports=reports)


eval.add_command(score)
