"""Questions per second of `alignkd eval`, against the loop of the original's generators, with the same answers.

    python benchmarks/eval.py [--questions 32] [--per-image 2] [--hidden 512] [--layers 8] [--tokens 3] [--batch 16]

* loop: one question after the other, as the original does: read and process the image, make the prompt, generate with a
  KV cache in a batch of one.
* batch N: `alignkd eval`'s own function: images prepared ahead in threads, prompts of like length in a batch, the
  vision tower once per distinct image, every answer in the journal.

The checkpoint has random weights in MobileVLM's layout, which never end an answer: `--tokens` sets the length of all
answers (an answer of one word has 2 or 3 tokens). Rounds alternate the cases; a ratio compares two figures of a round,
by wall time, and by processor time, which other programs on the machine change less. Loading the model is not included.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from cases.dump_inputs import DTYPES, write_inputs
from cases.measuring import machine

from alignkd.evaluation.answers import clean_text
from alignkd.evaluation.question import Question
from alignkd.pipeline.evaluation.answering import Answering
from alignkd.pipeline.evaluation.journal import Process
from alignkd.pipeline.evaluation.parts import PARTS, AnswerParts
from alignkd.pipeline.evaluation.prompts import preparation_for, sample_of
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.vlm.data.images import image_files
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.generation import generate
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.examples import Preparation

TURNS = (
    "Which digit is it?\nAnswer the question using a single word or phrase.",
    "Is the digit that is written here larger than four?\nAnswer the question using a single word or phrase.",
    "What is written?\nReference OCR token: 7, 1, 4\nAnswer the question using a single word or phrase.",
)


@click.command()
@click.option("--questions", "samples", type=click.IntRange(min=2), default=32, show_default=True)
@click.option("--per-image", type=click.IntRange(min=1), default=2, show_default=True, help="Questions per image.")
@click.option("--hidden", type=click.IntRange(min=64), default=512, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1), default=3, show_default=True, help="Tokens of every answer.")
@click.option("--batch", "batches", type=click.IntRange(1, 128), multiple=True, default=[1, 4, 16], show_default=True)
@click.option("--dtype", type=click.Choice(sorted(DTYPES)), default="float32", show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=torch.get_num_threads(), show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(**options: Any) -> None:
    """Measure questions per second."""
    torch.set_num_threads(options["threads"])
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), options)
        report(Path(folder), options)


def report(folder: Path, options: dict[str, Any]) -> None:
    """Measure and print."""
    checkpoint = open_checkpoint(folder / "teacher", vision_config=folder / "teacher" / "clip")
    model = checkpoint.load_model(dtype=DTYPES[options["dtype"]], device=options["device"])
    questions = [
        Question(
            id=number,
            turn=TURNS[number % len(TURNS)],
            prompt=TURNS[number % len(TURNS)],
            image=folder / "images" / f"{number // options['per_image']}.jpg",
            max_new_tokens=options["tokens"],
        )
        for number in range(options["samples"])
    ]
    preparation = preparation_for(checkpoint, questions)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{machine()}; torch with {options['threads']} threads, {options['device']}, {options['dtype']}")
    print(
        f"{parameters / 1e6:.0f} M parameters, {len(questions)} questions, {options['per_image']} per image, "
        f"{options['tokens']} tokens per answer"
    )
    cases: dict[str, Callable[[], list[str]]] = {"loop": partial(loop, model, preparation, questions, folder)}
    for batch in options["batches"]:
        cases[f"batch {batch}"] = partial(batched, model, preparation, questions, folder, batch)
    answers = {name: run() for name, run in cases.items()}  # also warms up
    seconds = measured(cases, options["rounds"], model)
    print("| case | questions/s | of the loop | lowest..highest | of the loop, processor | equal answers |")
    print("|:--|--:|--:|--:|--:|--:|")
    for name, found in seconds.items():
        walls, processors = (
            [loops[clock] / own[clock] for loops, own in zip(seconds["loop"], found, strict=True)] for clock in (0, 1)
        )
        equal = sum(one == other for one, other in zip(answers["loop"], answers[name], strict=True))
        print(
            f"| {name} | {len(questions) / statistics.median(wall for wall, _ in found):.2f} "
            f"| {statistics.median(walls):.2f} | {min(walls):.2f}..{max(walls):.2f} "
            f"| {statistics.median(processors):.2f} | {equal} of {len(questions)} |"
        )


def measured(
    cases: dict[str, Callable[[], list[str]]], rounds: int, model: VisionLanguageModel
) -> dict[str, list[tuple[float, float]]]:
    """Wall seconds and processor seconds of each case in each round."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            seconds[name].append((time.perf_counter() - started, time.process_time() - used))
    return seconds


def loop(
    model: VisionLanguageModel, preparation: Preparation, questions: Sequence[Question], folder: Path
) -> list[str]:
    """One question after the other."""
    texts = []
    for number, question in enumerate(questions):
        sample = sample_of(question, number, folder)
        prompt = preparation.build_question(sample.turns, image_files(sample))
        limits = [question.max_new_tokens]
        (found,) = generate(
            model, [prompt], limits=limits, stop_ids=preparation.stop_ids, num_tokens=preparation.num_tokens
        )
        texts.append(clean_text(preparation.decode(found.ids)))
    return texts


def batched(
    model: VisionLanguageModel, preparation: Preparation, questions: Sequence[Question], folder: Path, batch: int
) -> list[str]:
    """The questions as `alignkd eval` asks them."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        (Path(out) / PARTS).mkdir()
        parts = AnswerParts(Path(out), questions, Process(device=str(model.device), batch=batch, versions={}))
        Answering(model=model, preparation=preparation, control=DumpControl(), folder=folder, batch=batch).answer(parts)
        return [one.text for one in parts.answers()]


if __name__ == "__main__":
    main()
