"""Settings that all rows of the demo share, and the two presets of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TEMPLATE: Literal["v1"] = "v1"


@dataclass(frozen=True, kw_only=True)
class TeacherTraining:
    """Arguments of `alignkd.pipeline.demo.train_teacher`, used with `--train-teacher`."""

    scenes: int = 30_000
    tower_steps: int = 2_000
    steps: int = 5_000


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """One preset of the demo.

    Attributes:
        num_scenes: number of pictures of the training set.
        num_eval_scenes: number of pictures of the test set, each with 1 to `questions_per_scene` questions.
        questions_per_scene: largest number of questions of a conversation.
        data_seed, eval_seed: seeds of the training set and of the test set.
        development_scenes, development_seed: pictures and seed of the set on which settings are chosen.
        teacher_batch: samples per forward pass of the teacher.
        shard_size: samples per shard.
        store: codecs of the targets, as in the section `store` of a configuration.
        steps, micro_batch, learning_rate, projector_learning_rate, adapter_learning_rate, warmup_ratio,
            weight_decay, adapter_init, checkpoint_every, data_workers: as in the section `train`.
        teacher_training: settings of `--train-teacher`.
    """

    num_scenes: int
    num_eval_scenes: int
    questions_per_scene: int = 6
    data_seed: int = 0
    eval_seed: int = 2  # with seed 1, settings were chosen before the pools `development` and `test` existed
    development_scenes: int = 400
    development_seed: int = 3
    teacher_batch: int = 32
    shard_size: int = 256
    store: Mapping[str, Any] = field(
        default_factory=lambda: {
            "attention": "float16",
            "vision_top": "float16",
            "vision_all": "float16",
            "logits": {"kind": "full"},
        }
    )
    steps: int
    micro_batch: int = 32
    learning_rate: float = 4e-3
    projector_learning_rate: float | None = None
    adapter_learning_rate: float | None = 2e-5
    adapter_init: Literal["pytorch", "mean_of_heads", "grouped_heads"] = "grouped_heads"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    checkpoint_every: int | None = 250
    data_workers: int = 0
    teacher_training: TeacherTraining = TeacherTraining()


FULL = DemoSettings(num_scenes=1500, num_eval_scenes=1000, steps=700)
QUICK = DemoSettings(
    num_scenes=120,
    num_eval_scenes=60,
    shard_size=32,
    steps=24,
    checkpoint_every=10,
    teacher_training=TeacherTraining(scenes=200, tower_steps=20, steps=20),
)
