"""Paths of all files of a demo, and how an unfinished demo resumes: complete files are used again."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.demo.models import VISION_FOLDER
from alignkd.pipeline.demo.recipes import MoreScenes, Store
from alignkd.pipeline.demo.world.dataset import DatasetFiles
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError

_ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class StudentPaths:
    """Files of one student; its name consists of recipe and seed."""

    root: Path
    recipe: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the student, unique in the demo."""
        return f"{self.recipe}-seed-{self.seed}"

    @property
    def config(self) -> Path:
        """Run configuration of the student, for both phases."""
        return self.root / "configs" / f"{self.name}.yaml"

    @property
    def output(self) -> Path:
        """Output folder of the training."""
        return self.root / "students" / self.recipe / f"seed-{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """The trained student."""
        return self.output / "student"

    @property
    def metrics(self) -> Path:
        """Losses of every step."""
        return self.output / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Output of the training, if several students train at the same time."""
        return self.root / "logs" / f"{self.name}.log"

    @property
    def evaluation(self) -> Path:
        """Answers to the questions; written last, so the file marks a finished student."""
        return _evaluation(self.root, self.name)


@dataclass(frozen=True)
class DemoFolder:
    """The folder given as `--out`, and the paths of the demo in it."""

    root: Path

    @property
    def training_set(self) -> DatasetFiles:
        """Conversations and images of the training."""
        return self.dataset("train")

    @property
    def test_set(self) -> DatasetFiles:
        """Single questions about handwriting of the pool `test`."""
        return self.dataset("test")

    @property
    def teacher(self) -> Path:
        """The teacher's checkpoint."""
        return self.root / "teacher"

    @property
    def settings_file(self) -> Path:
        """Settings with which the demo was started."""
        return self.root / "settings.json"

    @property
    def seconds_file(self) -> Path:
        """Seconds that each step has taken so far."""
        return self.root / "seconds.json"

    def dataset(self, name: str) -> DatasetFiles:
        """Files of a data set, by the name of its folder."""
        folder = self.root / "data" / name
        return DatasetFiles(conversations=folder / "conversations.json", images=folder / "images")

    def more_set(self, more: MoreScenes) -> DatasetFiles:
        """Scenes in addition to the training set, with the answers that the rows train on."""
        asked = self.asked_set(more)
        if more.answers == "true":
            return asked
        return DatasetFiles(conversations=self.generated(more) / "answers", images=asked.images)

    def asked_set(self, more: MoreScenes) -> DatasetFiles:
        """The same scenes with the right answers."""
        return self.dataset(f"more-{more.num}")

    def generated(self, more: MoreScenes) -> Path:
        """Output of `alignkd generate`."""
        return self.root / "data" / f"generated-{more.num}"

    def fresh_student(self, seed: int) -> Path:
        """Checkpoint of the untrained student of a seed."""
        return self.root / "students" / "fresh" / f"seed-{seed}"

    @property
    def vision_config(self) -> Path:
        """Configuration of the vision tower of teacher and students; a trained student's folder has none."""
        return self.teacher / VISION_FOLDER

    def store(self, store: Store) -> Path:
        """Folder of a store of the teacher's targets."""
        return self.root / "stores" / store.name

    def student(self, recipe: str, seed: int) -> StudentPaths:
        """Files of one student."""
        return StudentPaths(root=self.root, recipe=recipe, seed=seed)

    @property
    def teacher_evaluation(self) -> Path:
        """The teacher's answers to the questions."""
        return _evaluation(self.root, "teacher")

    def picture(self, name: str) -> Path:
        """Path of a picture."""
        return self.root / "pictures" / f"{name}.png"


def begin(folder: DemoFolder, settings: Mapping[str, Any]) -> None:
    """Claim a new folder for these settings, or resume in one that was claimed for the same settings.

    Raises:
        InputError: the folder has other content, or a demo with other settings (each named with both values).
    """
    if folder.settings_file.is_file():
        problem = f"{folder.root}: contains a demo with other settings"
        check_same(problem, read_json(folder.settings_file), settings)
        return
    if folder.root.exists() and not folder.root.is_dir():
        raise InputError(f"{folder.root}: is a file; choose another --out")
    if folder.root.is_dir() and any(folder.root.iterdir()):
        raise InputError(f"{folder.root}: is not empty and does not contain a demo; choose another --out")
    folder.root.mkdir(parents=True, exist_ok=True)
    write_json(folder.settings_file, settings)


def made_once(target: Path, make: Callable[[Path], object]) -> None:
    """Call `make(temporary)`, whose folder becomes `target` when it is complete; an existing target is kept."""
    if target.exists():
        return
    temporary = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    make(temporary)
    temporary.rename(target)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented JSON; the file appears complete or not at all."""
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def check_same(problem: str, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Compare settings of a demo with those that are requested.

    Args:
        problem: begins the message, and names the file or folder of `found`.

    Raises:
        InputError: they differ; names each difference with both values.
    """
    differing = [
        f"{name} is {found.get(name, _ABSENT)} there, {asked.get(name, _ABSENT)} requested"
        for name in sorted({*found, *asked})
        if found.get(name, _ABSENT) != asked.get(name, _ABSENT)
    ]
    if differing:
        raise InputError(f"{problem}: {'; '.join(differing)}; choose another --out or delete the folder of the demo")


def _evaluation(root: Path, name: str) -> Path:
    return root / "evaluations" / f"{name}.json"
