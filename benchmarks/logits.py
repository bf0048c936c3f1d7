"""Bytes per position of the teacher's distribution, against their effect on the student.

    python benchmarks/logits.py --out FOLDER [--positions 256] [--seeds 3] [--choice "topk 64" ...] [--no-accuracy]

Two figures for every choice of `store.logits`, each computed with the code of dump, store and training:

* the cosine between the gradient of eq. 6 on the student's logits and the exact one, for synthetic teachers with a
  vocabulary of 32,000 at several entropies, and for the demo's trained teacher with a supervised student on
  handwriting of the pool `development`;
* the accuracy on development questions of the demo's students that learn from labels and logits, `--seeds` of each
  choice (about a minute each on two cores); an interrupted run resumes.

Writes tables (markdown, to stdout), `logits.json` and `logits.png` into the folder.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import torch
from cases.logit_cases import CHOICES, Found, Positions, as_rows, compare, synthetic
from cases.logit_picture import draw
from cases.measuring import machine

from alignkd.pipeline.demo.demo import (
    alignkd,
    evaluate_models,
    make_students,
    make_teacher,
    write_questions,
    write_training_set,
)
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths
from alignkd.pipeline.demo.processes import run_commands
from alignkd.pipeline.demo.recipes import ROWS, SUPERVISED_ONLY, Recipe, Store
from alignkd.pipeline.demo.run_config import steps_of
from alignkd.pipeline.demo.settings import FULL, TEMPLATE
from alignkd.pipeline.demo.training import train_students
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences

ENTROPIES = (0.3, 1.0, 3.0, 5.7)
# with the demo's vocabulary of a few hundred pieces, larger choices keep everything
TRAINED = ("topk 8", "topk 64", "nucleus 0.98, 32 to 1024", "hidden int8_group", "hidden bfloat16", "full float16")

LOGIT_WEIGHT = ROWS["logit"].losses["logit"]


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for everything.")
@click.option("--positions", type=click.IntRange(8), default=256, show_default=True, help="Of each synthetic teacher.")
@click.option("--vocabulary", default=32000, show_default=True, help="Of the synthetic teachers.")
@click.option("--hidden-size", default=4096, show_default=True, help="Of the synthetic teachers.")
@click.option("--scenes", default=200, show_default=True, help="Of the pool `development`, for the demo's gradients.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Students per choice.")
@click.option("--choice", type=click.Choice(list(CHOICES)), multiple=True, default=TRAINED, help="To train with.")
@click.option("--steps", type=int, help="Of each student; default the demo's.")
@click.option("--accuracy/--no-accuracy", default=True, help="Whether students are trained.")
def main(
    out: Path,
    positions: int,
    vocabulary: int,
    hidden_size: int,
    scenes: int,
    seeds: int,
    choice: tuple[str, ...],
    steps: int | None,
    accuracy: bool,
) -> None:
    """Compare every way of storing logits.

    Example: python benchmarks/logits.py --out /tmp/logits --no-accuracy
    """
    print(f"{' '.join(['python benchmarks/logits.py', *sys.argv[1:]])}\n\n{machine()}\n", flush=True)
    found: list[Found] = []
    for entropy in ENTROPIES:
        teacher = synthetic(entropy, positions=positions, vocabulary=vocabulary, hidden_size=hidden_size)
        found += compare(teacher, CHOICES)
    demo = Demo(DemoFolder((out / "demo").resolve()), steps)
    found += compare(demo.positions(scenes), CHOICES)
    _show(as_rows(found))
    scores = demo.scores(choice, seeds) if accuracy else {}
    if scores:
        _show([("learned from", "accuracy, %", "seeds"), *(_score_row(name, scores[name]) for name in scores)])
    out.joinpath("logits.json").write_text(
        json.dumps({"gradients": [asdict(one) for one in found], "accuracy": scores}, indent=2) + "\n", encoding="utf-8"
    )
    draw(out / "logits.png", found)


class Demo:
    """The demo's teacher, data and students, in a separate folder."""

    def __init__(self, folder: DemoFolder, steps: int | None) -> None:
        self.folder = folder
        self.settings = FULL if steps is None else replace(FULL, steps=steps)
        write_training_set(folder, self.settings)
        self.questions = write_questions(folder, self.settings, "development")
        make_teacher(folder, self.settings, train_teacher=False)
        self.labels_alone = replace(SUPERVISED_ONLY, store=_logits_alone("full float16"))

    @torch.no_grad()
    def positions(self, scenes: int) -> Positions:
        """The teacher and a student trained on labels alone, at the answers to development questions."""
        student = self.folder.student(self.labels_alone.name, 0)
        self._train({self.labels_alone: [student]})
        states_ND, labels_N, head_VD = self._states(self.folder.teacher, scenes)
        student_ND, _, student_head_VD = self._states(student.checkpoint, scenes)
        return Positions(
            name="the demo's teacher",
            teacher_ND=states_ND,
            teacher_head_VD=head_VD,
            student_NV=student_ND @ student_head_VD.T,
            labels_N=labels_N,
        )

    def scores(self, choices: Sequence[str], seeds: int) -> dict[str, list[float]]:
        """Accuracy in % of every seed's student, by choice; first students that learn from labels alone."""
        students = [self.folder.student(self.labels_alone.name, seed) for seed in range(seeds)]
        self._train({self.labels_alone: students})
        found = {"labels alone": self._accuracy(students)}
        for name in choices:
            recipe = Recipe(
                name=f"logits-{_slug(name)}", label=name, store=_logits_alone(name), losses={"logit": LOGIT_WEIGHT}
            )
            group = [self.folder.student(recipe.name, seed) for seed in range(seeds)]
            self._train({recipe: group})
            found[name] = self._accuracy(group)
        return found

    def _states(self, checkpoint: Path, scenes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Last hidden states [N, D] and labels [N] at supervised positions, and the output head."""
        data, vision = self.questions, self.folder.vision_config
        builder = load_preparation(checkpoint, template=TEMPLATE, vision_config=vision)
        model = load_model(checkpoint, vision_config=vision, dtype=torch.float32)
        samples = load_samples(data.conversations)[:scenes]
        examples = [builder.build(sample.turns, read_images(data.images, sample.images)) for sample in samples]
        states, labels = [], []
        for start in range(0, len(examples), 32):
            batch = collate_sequences(examples[start : start + 32])
            vision = model.encode_images(batch.images) if batch.images else None
            states.append(model.hidden_states(batch, vision)[batch.supervised_mask_BL])
            labels.append(batch.supervised_labels_N)
        return torch.cat(states), torch.cat(labels), model.lm_head.weight.detach()

    def _train(self, students: dict[Recipe, list[StudentPaths]]) -> None:
        """Dump missing stores; train and evaluate unfinished students."""
        unfinished = {
            student: steps_of(recipe, self.settings)
            for recipe, group in students.items()
            for student in group
            if not student.evaluation.exists()
        }
        if not unfinished:
            return
        make_students(self.folder, self.settings, students)
        run_commands([alignkd("dump", next(iter(unfinished)).config)])
        train_students(unfinished)
        evaluate_models(self.folder, [*unfinished], self.questions)

    def _accuracy(self, students: Sequence[StudentPaths]) -> list[float]:
        return [100 * json.loads(student.evaluation.read_text(encoding="utf-8"))["accuracy"] for student in students]


def _logits_alone(choice: str) -> Store:
    keys = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": CHOICES[choice]}
    return Store(name=_slug(choice), keys=keys)


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _score_row(name: str, scores: list[float]) -> tuple[str, ...]:
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return name, f"{statistics.mean(scores):.1f}{spread}", ", ".join(f"{score:.1f}" for score in scores)


def _show(rows: Sequence[tuple[str, ...]]) -> None:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    print("\n".join([lines[0], "|:--|" + "--:|" * (len(rows[0]) - 1), *lines[1:], ""]), flush=True)


if __name__ == "__main__":
    main()
