"""Padded / real positions of training and of the dump, for batches of the recipes and assumed lengths of their data.

    python benchmarks/padding.py

No model is run: batches follow from lengths alone, so the figures hold for every device. Nothing is read but the
recipes' batch sizes.

Assumed lengths. An image has 144 tokens, the system prompt of the template `v1` has 36, `plain` has none. The other
text is drawn from log-normal distributions (`Part`), whose medians are guesses from the kind of answer, not measured
on the data sets. Samples above the recipe's `max_tokens` are left out, as by `alignkd dump`.

* captions, short: as LLaVA's 558 k pre-training captions, one sentence each.
* captions, dense: as the 1.2 M captions of ShareGPT4V, a paragraph each.
* mixture: as the fine-tuning data of MobileVLM V2, 2.4 M samples. One sentence about an image (COCO, SBU: 1436 k); one
  short question (TextVQA, VSR, VIGC, IConQA, SQA: 205 k); ten rounds (Visual Dialog, 123 k); and the parts of
  ShareGPT4V's mixture: long answers (181 k), many short questions about one image (370 k), one short question (97 k),
  chats without an image (40 k).

* before: micro-batches in the order of the step.
* sorted: `train.micro_batch`, the global batch sorted by length.
* budget: `train.token_budget` of as many positions as a micro-batch of the longest samples has, so with the same
  memory for the decoder.
* slowest: with several devices, all wait for the one with the most positions in a micro-batch: its positions, times
  the number of devices, by the real ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import yaml
from numpy.typing import NDArray

from alignkd.storage import SampleOrder
from alignkd.student_train.data.division import Division, MicroBatchLimit
from alignkd.teacher_dump.bucketing import least_work_buckets, length_buckets
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.inputs import batch_cuts

CONFIGS = Path(__file__).parents[1] / "pipeline" / "configs"
RECIPES = ("short", "short-rtx3090", "long", "long-rtx3090", "lora-rtx3090")
IMAGE_TOKENS, SYSTEM_TOKENS = 144, 36
DRAWN, STEPS = 40_000, 100


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples of one kind: their number in thousands, the median of their text, the deviation of its logarithm."""

    thousands: int
    median: int
    deviation: float
    has_image: bool = True


DATA: dict[str, tuple[str, tuple[Part, ...]]] = {
    "captions, short": ("pretrain", (Part(thousands=558, median=18, deviation=0.5),)),
    "captions, dense": ("pretrain", (Part(thousands=1200, median=180, deviation=0.35),)),
    "mixture": (
        "finetune",
        (
            Part(thousands=1436, median=28, deviation=0.3),
            Part(thousands=205, median=60, deviation=0.6),
            Part(thousands=123, median=150, deviation=0.25),
            Part(thousands=181, median=300, deviation=0.5),
            Part(thousands=370, median=180, deviation=0.7),
            Part(thousands=97, median=45, deviation=0.4),
            Part(thousands=40, median=700, deviation=1.0, has_image=False),
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of one stage of a recipe."""

    recipe: str
    stage: str
    max_tokens: int
    micro_batch: int
    global_batch: int


def batches_of(recipe: str, stage: str) -> Batches:
    """The batches of a stage of a recipe."""
    sections = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    (own,) = (one for one in sections["stages"] if one["name"] == stage)
    train = {**sections["train"], **own["train"]}
    return Batches(
        recipe=recipe,
        stage=stage,
        max_tokens=sections["data"]["max_tokens"],
        micro_batch=train.get("micro_batch") or train["token_budget"] // sections["data"]["max_tokens"],
        global_batch=train["global_batch"],
    )


def lengths_of(name: str, max_tokens: int) -> NDArray[np.int64]:
    """Drawn lengths of a data set."""
    stage, parts = DATA[name]
    random = np.random.default_rng(0)
    shares = np.array([part.thousands for part in parts], float)
    kind = random.choice(len(parts), DRAWN, p=shares / shares.sum())
    medians, deviations = (np.array([getattr(part, key) for part in parts])[kind] for key in ("median", "deviation"))
    text = 2 + np.round(medians * np.exp(deviations * random.standard_normal(DRAWN)))
    images = np.array([part.has_image for part in parts])[kind]
    tokens = text + IMAGE_TOKENS * images + SYSTEM_TOKENS * (stage == "finetune")
    lengths: NDArray[np.int64] = tokens.astype(np.int64)
    return lengths[lengths <= max_tokens]


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Padded / real positions over some steps, the same for the slowest device, and micro-batches per step."""

    ratio: float
    slowest: float
    micro_batches: float


def padding(lengths: NDArray[np.int64], steps: Sequence[Division], devices: int) -> Padding:
    """The padding of some steps on so many devices."""
    real = padded = slowest = 0
    for division in steps:
        real += int(lengths[division.samples].sum())
        ranks = [
            [len(batch) * int(lengths[batch].max()) for batch in division.of_rank(rank)] for rank in range(devices)
        ]
        padded += sum(map(sum, ranks))
        slowest += devices * sum(map(max, zip(*ranks, strict=True)))
    return Padding(ratio=padded / real, slowest=slowest / real, micro_batches=sum(map(len, steps)) / len(steps))


def training(batches: Batches, lengths: NDArray[np.int64], devices: int) -> dict[str, Padding]:
    """`before`, `sorted` and `budget` on so many devices."""
    order = SampleOrder(len(lengths), 0, batches.global_batch)
    steps = [order.global_batch_indices(step) for step in range(STEPS)]
    own = MicroBatchLimit(samples=batches.micro_batch)
    budget = MicroBatchLimit(positions=batches.micro_batch * batches.max_tokens)
    equal = np.ones_like(lengths)  # keeps the order of the step
    return {
        name: padding(lengths, [Division(step, known[step], limit, devices) for step in steps], devices)
        for name, limit, known in (("before", own, equal), ("sorted", own, lengths), ("budget", budget, lengths))
    }


def training_rows() -> Iterator[list[str]]:
    """One device."""
    for name, (stage, _) in DATA.items():
        for batches in (batches_of(recipe, stage) for recipe in RECIPES):
            lengths = lengths_of(name, batches.max_tokens)
            found = training(batches, lengths, 1)
            yield [
                name,
                f"{batches.recipe}, {batches.micro_batch} of {batches.global_batch}",
                f"{lengths.mean():.0f}",
                *(f"{found[case].ratio:.3f}" for case in ("before", "sorted", "budget")),
                f"{found['before'].ratio / min(found['sorted'].ratio, found['budget'].ratio):.2f}",
                *(f"{found[case].micro_batches:.1f}" for case in ("sorted", "budget")),
            ]


def device_rows() -> Iterator[list[str]]:
    """Several devices, for the recipes that are made for them."""
    for name, (stage, _) in DATA.items():
        for batches in (batches_of(recipe, stage) for recipe in ("short", "long")):
            lengths = lengths_of(name, batches.max_tokens)
            for devices in (2, 8):
                found = training(batches, lengths, devices)
                yield [
                    name,
                    f"{batches.recipe}, {batches.micro_batch} of {batches.global_batch}",
                    str(devices),
                    *(f"{found[case].slowest:.3f}" for case in ("before", "sorted", "budget")),
                    *(f"{found[case].micro_batches:.1f}" for case in ("sorted", "budget")),
                ]


def dump_rows() -> Iterator[list[str]]:
    """Windows of the default settings of the section `teacher`."""
    teacher = TeacherConfig(checkpoint="any")
    limits = {"token_budget": teacher.token_budget, "max_samples": teacher.batch}
    for name in DATA:
        for max_tokens in (512, 2048):
            lengths = lengths_of(name, max_tokens)
            windows = lengths[: len(lengths) // teacher.window * teacher.window].reshape(-1, teacher.window).tolist()
            row = [name, str(max_tokens)]
            for buckets in (length_buckets, least_work_buckets):
                every = [buckets(window, **limits) for window in windows]
                padded = sum(
                    len(bucket) * max(window[number] for number in bucket)
                    for window, found in zip(windows, every, strict=True)
                    for bucket in found
                )
                row += [f"{padded / sum(map(sum, windows)):.3f}", f"{sum(map(len, every)) / len(every):.1f}"]
            yield row


def cost_rows() -> Iterator[list[str]]:
    """The work of the budget of `long-rtx3090` if its cuts are made for another cost of a batch."""
    batches = batches_of("long-rtx3090", "finetune")
    lengths = lengths_of("mixture", batches.max_tokens)
    own = batch_cuts.BATCH_COST
    real = float(lengths.mean()) * batches.global_batch
    for cost in (own // 4, own // 2, own, 2 * own, 4 * own):
        batch_cuts.BATCH_COST = cost
        found = training(batches, lengths, 1)["budget"]
        batch_cuts.BATCH_COST = own
        work = found.ratio * real + own * found.micro_batches
        yield [str(cost), f"{found.ratio:.3f}", f"{found.micro_batches:.1f}", f"{work / real:.3f}"]


def table(title: str, head: Sequence[str], rows: Iterator[list[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(head)} |")
    print("|" + "|".join(":--" if number < 2 else "--:" for number in range(len(head))) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


@click.command()
def main() -> None:
    """Print the tables of docs/benchmarks.md."""
    cases = ("before", "sorted", "budget")
    batches = ("micro-batches, sorted", "micro-batches, budget")
    table(
        "Training on one device, padded / real positions:",
        ("data", "recipe", "mean tokens", *cases, "before / best", *batches),
        training_rows(),
    )
    table("Training on several devices, slowest:", ("data", "recipe", "devices", *cases, *batches), device_rows())
    table(
        "Dump, padded / real positions:",
        ("data", "max_tokens", "fewest batches", "batches of a window", "least work", "batches of a window"),
        dump_rows(),
    )
    table(
        "Cuts for another cost of a batch:",
        ("cost", "padded / real", "micro-batches", f"work / real, at the cost of {batch_cuts.BATCH_COST}"),
        cost_rows(),
    )


if __name__ == "__main__":
    main()
