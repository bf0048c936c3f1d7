"""All settings of the demo in one place: the two presets, and the losses of each student."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AttentionPairs = Literal["tqv", "tqt", "vqv"]
TEMPLATE: Literal["v1"] = "v1"
SUPERVISED, ALIGN_KD = "supervised", "align_kd"


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
        num_eval_scenes: number of pictures of the held-out set, each with 1 to `questions_per_scene` questions.
        questions_per_scene: largest number of questions of a conversation.
        data_seed, eval_seed: seeds of the two data sets.
        teacher_batch: samples per forward pass of the teacher.
        shard_size: samples per shard.
        store: codecs of the targets, as in the section `store` of a configuration.
        steps, micro_batch, learning_rate, projector_learning_rate, adapter_learning_rate, warmup_ratio,
            weight_decay, adapter_init, checkpoint_every, data_workers: as in the section `train`.
        losses: weight of each distillation term, for recipes that use it.
        logit_divergence, temperature: settings of the logit loss.
        teacher_training: settings of `--train-teacher`.
    """

    num_scenes: int
    num_eval_scenes: int
    questions_per_scene: int = 6
    data_seed: int = 0
    eval_seed: int = 1
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
    losses: Mapping[str, float] = field(
        default_factory=lambda: {"attention": 2e4, "vision_all": 0.3, "vision_top": 0.03, "logit": 0.3}
    )
    logit_divergence: Literal["reverse_kl", "forward_kl"] = "reverse_kl"
    temperature: float = 1.0
    teacher_training: TeacherTraining = TeacherTraining()


FULL = DemoSettings(num_scenes=1500, num_eval_scenes=400, steps=700)
QUICK = DemoSettings(
    num_scenes=120,
    num_eval_scenes=60,
    shard_size=32,
    steps=24,
    checkpoint_every=10,
    teacher_training=TeacherTraining(scenes=200, tower_steps=20, steps=20),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The losses of one row of the table, in addition to the supervised loss.

    Attributes:
        name: name in `report.json` and in paths.
        label: name in tables and pictures.
        terms: distillation terms.
        pairs: queries and keys that the attention term compares.
    """

    name: str
    label: str
    terms: tuple[str, ...]
    pairs: AttentionPairs = "tqv"

    def losses(self, settings: DemoSettings) -> dict[str, Any]:
        """The section `train.losses` of this recipe."""
        weights = {term: weight if term in self.terms else 0.0 for term, weight in settings.losses.items()}
        return {
            SUPERVISED: 1.0,
            **weights,
            "logit_divergence": settings.logit_divergence,
            "temperature": settings.temperature,
        }


_VISION = ("vision_all", "vision_top")
_ALL = ("logit", "attention", *_VISION)
SUPERVISED_ONLY = Recipe(name=SUPERVISED, label="supervised only", terms=())
EVERYTHING = Recipe(name=ALIGN_KD, label="Align-KD", terms=_ALL)
ABLATION = (
    Recipe(name="logit", label="logits", terms=("logit",)),
    Recipe(name="logit_attention", label="logits + attention", terms=("logit", "attention")),
    Recipe(name="logit_vision", label="logits + vision", terms=("logit", *_VISION)),
    EVERYTHING,
    # The paper's table 4: other pairs of queries and keys in place of text-query-vision.
    Recipe(name="align_kd_tqt", label="Align-KD, text-query-text", terms=_ALL, pairs="tqt"),
    Recipe(name="align_kd_vqv", label="Align-KD, vision-query-vision", terms=_ALL, pairs="vqv"),
)


def recipes(*, ablation: bool) -> tuple[Recipe, ...]:
    """The rows of the table, from the fewest losses to the most."""
    return (SUPERVISED_ONLY, *(ABLATION if ablation else (EVERYTHING,)))
