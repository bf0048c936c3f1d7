"""Trains the demo's teacher from scratch: first its vision tower, then projector and decoder on generated questions.

`python -m alignkd.pipeline.demo.train_teacher --out DIR` makes the checkpoint that ships as `assets/teacher`,
together with its log. The demo's own data set is not used: scenes have other seeds. The log reports the accuracy
on the handwriting of the pool `development`; that of the pool `test` is not used.
"""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import claim_folder
from alignkd.pipeline.demo.models import TEACHER, write_configs
from alignkd.pipeline.demo.world.questions import (
    SCENE_QUESTION_TYPES,
    TEXT_QUESTION_TYPES,
    Conversation,
    Question,
    ask_scene,
    ask_text,
    conversation,
)
from alignkd.pipeline.demo.world.scenes import CELL_NAMES, EMPTY, Pool, Scene, draw_scene, make_scene
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.vision_tower import VisionTower
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.weights.files import iter_weights
from alignkd.vlm.weights.tensor_file import save_tensors

SCENE_SEED = 77_001
EVALUATION_SEED = 77_002
PATCHES_PER_CELL = 4
GRID = 12
TOWER_FILE = "tower.safetensors"
EMPTY_CLASS = 10
NUM_PATCH_CLASSES = 11
POSITION_SCALE = 0.3
UNKNOWN_SIZE = (0, 0)  # the number of MobileVLM's tokens does not depend on it
BATCHES_PER_POOL = 8
TEXT_ONLY_SHARE = 0.05
LISTING_SHARE = 0.4
QUESTION_WEIGHTS = {
    "position": 3.0,
    "count": 3.0,
    "sum": 3.0,
    "exists": 2.0,
    "largest": 1.5,
    "smallest": 1.5,
    "total": 1.0,
}


@dataclass(frozen=True)
class TeacherSchedule:
    """Lengths and learning rates of the training; the shipped teacher was made with the defaults."""

    scenes: int = 30_000
    tower_steps: int = 2_000
    steps: int = 5_000
    batch: int = 64
    turns: int = 6
    tower_learning_rate: float = 2e-3
    learning_rate: float = 1.5e-3
    seed: int = 0


class SceneSet:
    """Scenes with their pixels after the image processor, and patch labels for the tower."""

    def __init__(self, num: int, seed: int, pool: Pool, builder: MobileVLMPreparation) -> None:
        self.scenes = [make_scene(seed, number, pool) for number in range(num)]
        self.pixels_SCHW = torch.from_numpy(
            np.stack([builder.image_processor.process(draw_scene(scene)) for scene in self.scenes]).astype(np.float16)
        )
        self.patch_labels_SN = torch.from_numpy(np.stack([patch_labels(scene) for scene in self.scenes]))


def patch_labels(scene: Scene) -> np.ndarray:
    """Class of each of the 12 x 12 patches: the digit of its cell, or 10 for an empty cell; int64 [144]."""
    rows_px = [scene.labels_RC[row] for row in scene.grid_rows]
    cells = np.where(np.stack(rows_px) == EMPTY, EMPTY_CLASS, np.stack(rows_px)).astype(np.int64)
    patches = cells.repeat(PATCHES_PER_CELL, axis=0).repeat(PATCHES_PER_CELL, axis=1)
    padding = (patches.shape[1] - patches.shape[0]) // 2  # a two-row scene is padded to a square
    return np.pad(patches, ((padding, padding), (0, 0)), constant_values=EMPTY_CLASS).reshape(-1)


def train_tower(model: MobileVLM, scenes: SceneSet, schedule: TeacherSchedule) -> None:
    """Train the tower to predict each patch's digit, row and column, which CLIP's features contain too.

    Without rows and columns the features lose their position, and the language model needs thousands of additional
    steps to learn the meaning of "top-left". Only the hidden state that the projector uses is trained.
    """
    start_with_sinusoids(model.model.vision_tower)
    head = nn.Linear(model.config.vision.hidden_size, NUM_PATCH_CLASSES + 2 * GRID)
    parameters = [*model.model.vision_tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.tower_learning_rate, weight_decay=0.01)
    order = torch.Generator().manual_seed(schedule.seed)
    row_N, column_N = torch.arange(GRID).repeat_interleave(GRID), torch.arange(GRID).repeat(GRID)
    started = time.time()
    for step in range(schedule.tower_steps):
        set_learning_rate(optimizer, schedule.tower_learning_rate, step, schedule.tower_steps)
        samples = torch.randint(len(scenes.scenes), (schedule.batch,), generator=order)
        outputs = head(model.model.vision_tower(scenes.pixels_SCHW[samples].float())).flatten(0, 1)
        digits, rows, columns = outputs.split([NUM_PATCH_CLASSES, GRID, GRID], dim=-1)
        labels = scenes.patch_labels_SN[samples].flatten()
        digit_loss = nn.functional.cross_entropy(digits, labels)
        place_loss = sum(
            nn.functional.cross_entropy(place, target_N.repeat(schedule.batch))
            for place, target_N in ((rows, row_N), (columns, column_N))
        )
        optimizer.zero_grad()
        (digit_loss + 0.2 * place_loss).backward()
        optimizer.step()
        if (step + 1) % 250 == 0:
            accuracy = (digits.argmax(-1) == labels)[labels != EMPTY_CLASS].float().mean()
            place = (rows.argmax(-1) == row_N.repeat(schedule.batch)).float().mean()
            report(f"tower step {step + 1} loss {digit_loss:.4f} digits {accuracy:.3f} rows {place:.3f}", started)


def train_language(
    model: MobileVLM, scenes: SceneSet, builder: MobileVLMPreparation, schedule: TeacherSchedule
) -> None:
    """Supervised training of projector and decoder, with new questions for every batch and a frozen tower."""
    model.freeze_vision_tower()
    model.model.config._attn_implementation = "eager"  # measured: its bf16 backward is twice as fast on a CPU here
    features_SND = tower_features(model, scenes)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    batches = question_batches(scenes, builder, schedule)
    started, running = time.time(), 0.0
    for step in range(schedule.steps):
        set_learning_rate(optimizer, schedule.learning_rate, step, schedule.steps)
        batch, rows = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            vision = model.project(features_SND[rows].float()) if len(rows) else None
            hidden_BLD = model.hidden_states(batch, vision)
            logits_NV = model.lm_head(hidden_BLD[batch.supervised_mask_BL])
        loss = nn.functional.cross_entropy(logits_NV.float(), batch.supervised_labels_N)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running += loss.item()
        if (step + 1) % 250 == 0:
            report(f"step {step + 1} loss {running / 250:.4f}", started)
            running = 0.0
        if (step + 1) % 1000 == 0:
            report(f"step {step + 1} development accuracy {evaluate(model, builder)}", started)


@torch.no_grad()
def start_with_sinusoids(tower: VisionTower) -> None:
    """Initialise position embeddings with 2-D sinusoids, so that patches know their neighbours from the start."""
    embeddings = tower.vision_tower.vision_model.embeddings
    grid, quarter = embeddings.image_size // embeddings.patch_size, embeddings.embed_dim // 4
    frequency_F = (math.pi / 2) * 0.5 ** torch.linspace(0, 4, quarter)
    angle_GF = torch.arange(grid)[:, None] * frequency_F
    wave_GF = torch.cat([angle_GF.sin(), angle_GF.cos()], dim=1)
    rows, columns = wave_GF[:, None].expand(-1, grid, -1), wave_GF[None].expand(grid, -1, -1)
    embeddings.position_embedding.weight[1:] = torch.cat([rows, columns], dim=-1).flatten(0, 1) * POSITION_SCALE


@torch.no_grad()
def tower_features(model: MobileVLM, scenes: SceneSet) -> Tensor:
    """Features of every scene, float16 [scenes, patches, D_vision]: the frozen tower runs once."""
    tower = model.model.vision_tower
    return torch.cat([tower(part.float()).half() for part in scenes.pixels_SCHW.split(256)])


def question_batches(
    scenes: SceneSet, builder: MobileVLMPreparation, schedule: TeacherSchedule
) -> Iterator[tuple[SequenceBatch, Tensor]]:
    """Yield batches of conversations without end, each with the scene numbers of its images."""
    rng = np.random.default_rng([schedule.seed, 1])
    while True:
        pool: list[tuple[Example, int | None]] = []
        for _ in range(schedule.batch * BATCHES_PER_POOL):
            row = None if rng.random() < TEXT_ONLY_SHARE else int(rng.integers(len(scenes.scenes)))
            scene = None if row is None else scenes.scenes[row]
            pool.append((make_example(scene, rng, schedule.turns, builder), row))
        pool.sort(key=lambda item: item[0].positions.length)  # batches of similar length need little padding
        for start in rng.permutation(BATCHES_PER_POOL) * schedule.batch:
            part = pool[start : start + schedule.batch]
            rows = torch.tensor([row for _, row in part if row is not None], dtype=torch.int64)
            yield collate_sequences([example for example, _ in part]), rows


def make_example(
    scene: Scene | None, rng: np.random.Generator, max_turns: int, builder: MobileVLMPreparation
) -> Example:
    """A conversation about `scene`, or without one; no pixels, because the tower's features are already computed."""
    weights = np.array([QUESTION_WEIGHTS[name] for name in SCENE_QUESTION_TYPES])
    num_turns = int(rng.integers(max_turns // 2, max_turns + 1))
    if scene is None:
        questions = [ask_text(TEXT_QUESTION_TYPES[int(rng.integers(2))], rng) for _ in range(num_turns)]
        return tokenized(conversation(questions, with_image=False), builder)
    listed = rng.random() < LISTING_SHARE
    kinds = rng.choice(len(weights), size=num_turns // 2 if listed else num_turns, p=weights / weights.sum())
    questions = [ask_scene(SCENE_QUESTION_TYPES[kind], scene, rng) for kind in kinds]
    # Last, so that no other answer can be copied from it.
    return tokenized(conversation([*questions, *([listing(scene)] if listed else [])], with_image=True), builder)


def listing(scene: Scene) -> Question:
    """A question whose answer lists every cell by name, directly followed by its digit.

    Without it the model reads digits after 250 steps, but needs thousands of steps to learn which cell a name means: a
    question about one cell gives only one hint, which is far from the name.
    """
    cells = [
        f"{CELL_NAMES[row][column]} {'none' if scene.labels_RC[row, column] == EMPTY else scene.labels_RC[row, column]}"
        for row in scene.grid_rows
        for column in range(len(CELL_NAMES[row]))
    ]
    return Question(question_type="listing", subject="", text="which digits are there?", answer=" ".join(cells))


def tokenized(turns: Conversation, builder: MobileVLMPreparation) -> Example:
    """The example of a conversation, without pixels."""
    num_images = turns[0]["value"].count(IMAGE_PLACEHOLDER)
    tokens = builder.tokenize([Turn(turn["from"], turn["value"]) for turn in turns], [UNKNOWN_SIZE] * num_images)
    return Example(**vars(tokens))


@torch.no_grad()
def evaluate(model: MobileVLM, builder: MobileVLMPreparation, num: int = 400) -> str:
    """Share of right answers about `development` handwriting by type of question; all answer tokens must be argmax."""
    scenes = SceneSet(num, EVALUATION_SEED, "development", builder)
    features = tower_features(model, scenes)
    rng = np.random.default_rng(EVALUATION_SEED)
    shares: dict[str, float] = {}
    for name in SCENE_QUESTION_TYPES:
        examples = [
            tokenized(conversation([ask_scene(name, scene, rng)], with_image=True), builder) for scene in scenes.scenes
        ]
        batch = collate_sequences(examples)
        hidden = model.hidden_states(batch, model.project(features.float()))
        right_N = model.lm_head(hidden[batch.supervised_mask_BL]).argmax(-1) == batch.supervised_labels_N
        sizes = [len(example.positions.supervised_positions) for example in examples]
        shares[name] = float(np.mean([bool(part.all()) for part in right_N.split(sizes)]))
    mean = sum(shares.values()) / len(shares)
    return f"{mean:.3f} (" + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()) + ")"


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int) -> None:
    """Linear warm-up over 5 % of the steps, then cosine to zero."""
    warm_up = max(1, steps // 20)
    share = step / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))
    for group in optimizer.param_groups:
        group["lr"] = peak * share


def report(message: str, started: float) -> None:
    """One line of the training log."""
    click.echo(f"{message} [{time.time() - started:.0f} s]")


def train_teacher(out: Path, schedule: TeacherSchedule) -> None:
    """Train a teacher and write it to `out` as an fp16 checkpoint."""
    random.seed(schedule.seed)
    torch.manual_seed(schedule.seed)
    write_configs(out, TEACHER)
    model = new_model(load_config(out), seed=schedule.seed)
    builder = load_preparation(out, template="v1")
    started = time.time()
    scenes = SceneSet(schedule.scenes, SCENE_SEED, "train", builder)
    report(f"{schedule} drew {schedule.scenes} scenes", started)
    tower_file = out / TOWER_FILE
    if tower_file.is_file():  # an interrupted run resumes with its tower
        model.model.vision_tower.load_state_dict(dict(iter_weights(tower_file)))
    else:
        train_tower(model, scenes, schedule)
        save_tensors(model.model.vision_tower.state_dict(), tower_file)
    train_language(model, scenes, builder, schedule)
    model.model.config._attn_implementation = "sdpa"
    save_model(model.half(), out, tokenizer_from=out)
    tower_file.unlink()
    report(f"development accuracy as stored (fp16) {evaluate(model.float(), builder, num=1000)}", started)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder of the checkpoint.")
@click.option("--scenes", default=TeacherSchedule.scenes, show_default=True)
@click.option("--tower-steps", default=TeacherSchedule.tower_steps, show_default=True)
@click.option("--steps", default=TeacherSchedule.steps, show_default=True)
@clean_errors
def main(out: Path, scenes: int, tower_steps: int, steps: int) -> None:
    """Train the demo's teacher from scratch (about an hour on two cores)."""
    claim_folder("--out", out, lambda folder: (folder / TOWER_FILE).is_file(), reads=(), force=None)
    train_teacher(out, TeacherSchedule(scenes=scenes, tower_steps=tower_steps, steps=steps))


if __name__ == "__main__":
    main()
