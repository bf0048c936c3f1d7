"""Writes the demo's data set in LLaVA's format: `conversations.json` and its PNG files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignkd.pipeline.demo.world.questions import (
    Question,
    check_max_questions,
    conversation,
    scene_questions,
    text_questions,
)
from alignkd.pipeline.demo.world.scenes import Pool, Scene, check_pool, draw_scene, make_scene
from alignkd.vlm.errors import InputError

_TEXT_ONLY_SHARE = 0.05
_MIX_STREAM = 301


@dataclass(frozen=True, kw_only=True)
class DatasetFiles:
    """Paths of a data set."""

    conversations: Path
    """JSON list of `{"id", "image"?, "conversations", "question_types"}`; `question_types` has one per turn."""
    images: Path
    """Folder to which the `image` paths are relative."""


def write_dataset(
    out: Path,
    *,
    num_scenes: int,
    pool: Pool,
    seed: int,
    questions_per_scene: int,
    single_turn: bool = False,
    pictures: bool = True,
) -> DatasetFiles:
    """Write `num_scenes` pictures with their conversations, mixed with text-only conversations (about 5 % of all).

    The files are a pure function of the arguments; a longer data set starts with the same samples as a shorter one.

    Args:
        out: folder for `conversations.json` and `images/`; created if missing.
        num_scenes: number of pictures, at least 1.
        pool: pool of handwriting.
        seed: seed of all random choices, at least 0.
        questions_per_scene: largest number of questions of a conversation, 1 to 6.
        single_turn: each question becomes a separate conversation, as evaluation needs them.
        pictures: False writes the conversations alone, which takes a fraction of the time.

    Raises:
        InputError: an argument is out of its range.
    """
    check_pool(pool)
    check_max_questions(questions_per_scene)
    _check_at_least("num_scenes", num_scenes, 1)
    _check_at_least("seed", seed, 0)
    files = DatasetFiles(conversations=out / "conversations.json", images=out / "images")
    (files.images / "scenes").mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    for number in range(num_scenes):
        scene = make_scene(seed, number, pool)
        questions = scene_questions(scene, questions_per_scene)
        image = f"scenes/{number:06d}.png"
        if pictures:
            (files.images / image).write_bytes(png_bytes(scene))
        entries += _entries(f"scene-{number:06d}", questions, image=image, single_turn=single_turn)
        if _text_only_follows(seed, number):
            questions = text_questions(seed, number, questions_per_scene)
            entries += _entries(f"text-{number:06d}", questions, image=None, single_turn=single_turn)
    files.conversations.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return files


def png_bytes(scene: Scene) -> bytes:
    """The scene as a PNG file."""
    buffer = io.BytesIO()
    draw_scene(scene).save(buffer, format="PNG")
    return buffer.getvalue()


def _entries(
    sample_id: str, questions: list[Question], *, image: str | None, single_turn: bool
) -> list[dict[str, Any]]:
    """One entry of the JSON list, or one per question."""
    if single_turn:
        ids = [f"{sample_id}-{turn}" for turn in range(len(questions))]
        return [_entry(entry_id, [asked], image) for entry_id, asked in zip(ids, questions, strict=True)]
    return [_entry(sample_id, questions, image)]


def _entry(sample_id: str, questions: list[Question], image: str | None) -> dict[str, Any]:
    return {
        "id": sample_id,
        **({"image": image} if image is not None else {}),
        "conversations": conversation(questions, with_image=image is not None),
        "question_types": [question.question_type for question in questions],
    }


def _text_only_follows(seed: int, number: int) -> bool:
    rng = np.random.default_rng([_MIX_STREAM, seed, number])
    # A share p of all conversations is p / (1 - p) per picture.
    return bool(rng.random() < _TEXT_ONLY_SHARE / (1 - _TEXT_ONLY_SHARE))


def _check_at_least(name: str, found: int, least: int) -> None:
    if found < least:
        raise InputError(f"{name}: expected at least {least}, found {found}; raise it")
