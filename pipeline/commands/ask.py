"""`alignkd ask`: one question to a checkpoint, the answer printed as it is generated."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from alignkd.pipeline.console.checkpoint_options import processor_option, vision_config_option
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, print_json, say


@click.command()
@click.argument("checkpoint")
@click.argument("question", required=False)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An image file; repeat the option for several, in the order of their <image> in QUESTION.",
)
@click.option(
    "--template",
    type=click.Choice(["v1", "plain"]),
    help="Prompt template of MobileVLM with which the checkpoint was trained; by default v1.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Dtype of the weights; by default the checkpoint's own on a GPU, float32 on the CPU.",
)
@click.option("--device", help="Torch device, such as cpu or cuda:1; by default a GPU if there is one.")
@click.option(
    "--quantization",
    type=click.Choice(["none", "int8", "nf4"]),
    default="none",
    show_default=True,
    help="Quantisation of the decoder.",
)
@vision_config_option
@processor_option
@json_option
@clean_errors
def ask(as_json: bool, question: str | None, images: tuple[Path, ...], **settings: Any) -> None:
    """Ask CHECKPOINT a QUESTION, with or without images.

    Decoding is greedy, so the same question gets the same answer. If QUESTION does not contain <image>, the images
    come first. Template plain captions one image and takes no question: it is for checkpoints after pre-training.

    For a student that alignkd exported, --vision-config is taken from the run.

    Example: alignkd ask mtgv/MobileVLM_V2-1.7B --image photo.jpg "What is on the table?"
    """
    with heavy_imports():
        from alignkd.pipeline.config.checkpoint_config import vision_config_of
        from alignkd.pipeline.models.ask import Question
        from alignkd.pipeline.models.ask import ask as answer

    settings["vision_config"] = settings["vision_config"] or vision_config_of(settings["checkpoint"])
    asked = Question(text=question, images=images, **settings)

    if as_json:
        print_json({"question": asdict(asked), **asdict(answer(asked, on_notice=say))})
        return
    reply = answer(asked, on_text=lambda text: click.echo(text, nl=False), on_notice=say)
    click.echo()
    if not reply.answer:
        say(f"the answer is empty; generated tokens: {reply.new_tokens}")
