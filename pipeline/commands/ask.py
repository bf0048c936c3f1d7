"""`alignkd ask`: one question to a checkpoint, the answer as it comes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from alignkd.pipeline.console import clean_errors, json_option, print_json


@click.command()
@click.argument("checkpoint")
@click.argument("question", required=False)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An image file; the question is about it. Several, in the order of their <image> in QUESTION.",
)
@click.option("--template", type=click.Choice(["v1", "plain"]), default="v1", show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the weights; by default the checkpoint's own on a GPU, float32 on the CPU.",
)
@click.option("--device", help="Torch device, such as cpu or cuda:1; by default a GPU when there is one.")
@click.option("--quantization", type=click.Choice(["none", "int8", "nf4"]), default="none", show_default=True)
@click.option("--vision-config", type=click.Path(path_type=Path), help="Folder with the vision tower's config.json.")
@json_option
@clean_errors
def ask(as_json: bool, question: str | None, images: tuple[Path, ...], **settings: Any) -> None:
    """Ask CHECKPOINT a QUESTION, with or without images.

    Decoding is greedy, so the answer is always the same. Where QUESTION does not say <image>, the images come
    first. Template plain captions one image and takes no question: it is for checkpoints after pre-training.

    Example: alignkd ask mtgv/MobileVLM_V2-1.7B --image photo.jpg "What is on the table?"
    """
    from alignkd.pipeline.ask import Question
    from alignkd.pipeline.ask import ask as answer

    asked = Question(text=question, images=images, **settings)

    def notice(text: str) -> None:
        click.echo(f"alignkd: {text}", err=True)

    if as_json:
        print_json({"question": asdict(asked), **asdict(answer(asked, on_notice=notice))})
        return
    answer(asked, on_text=lambda text: click.echo(text, nl=False), on_notice=notice)
    click.echo()
