"""A random MobileVLM student of any shape and a random micro-batch for it: for memory and time of a step, no files.

Targets have the shapes and codecs of a store of profile `compact`. Shape letters as in
`alignkd.student_train.data.batch`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets, RaggedEntries, TruncatedTargets
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.term import Preset
from alignkd.student_train.objective.terms import preset_weights
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import model_size
from alignkd.vlm.inputs.batch import SequenceBatch
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.packed_images import PackedImages

# Text before the image: the template's system prompt.
TEXT_BEFORE = 36
# Entries of a position of the nucleus, as in docs/storage.md.
ENTRIES = 18


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Shapes of a student and of the teacher whose targets it gets.

    Attributes:
        student, teacher: configurations.
        dtype: of the student's weights and activations.
    """

    student: VLMConfig
    teacher: VLMConfig
    dtype: torch.dtype = torch.bfloat16

    def new_student(self, device: str, *, preset: Preset = "paper", checkpointing: bool = False) -> DistilledStudent:
        """A student with random weights, made on `device`."""
        with torch.device(device):
            model = MobileVLM(self.student)
            adapters = Adapters(
                heads=(self.teacher.num_heads, self.student.num_heads),
                hidden_sizes=(self.teacher.hidden_size, self.student.hidden_size),
            )
        if checkpointing:
            model.checkpoint_layers(preserve_rng_state=False)
        return DistilledStudent(model, adapters, LossConfig.model_validate(preset_weights(preset)))

    def micro_batch(self, samples: int, length: int, *, preset: Preset = "paper", seed: int = 0) -> TrainBatch:
        """`samples` samples with an image, all of `length` positions, on the host; text after the image is labelled."""
        random = torch.Generator().manual_seed(seed)
        made = _Random(random)
        vision, vocabulary = self.student.vision_tokens, self.student.vocab_size
        queries = length - TEXT_BEFORE - vision
        assert queries > 1, (length, vision)
        mask_BL = torch.zeros(samples, length, dtype=torch.bool)
        mask_BL[:, TEXT_BEFORE : TEXT_BEFORE + vision] = True
        ids_BL = made.integers((samples, length), vocabulary).masked_fill_(mask_BL, 0)
        labels_BL = ids_BL.clone()
        labels_BL[:, : TEXT_BEFORE + vision] = IGNORE_LABEL
        side = int(self.student.vision.image_size)
        sequences = SequenceBatch(
            input_ids_BL=ids_BL,
            labels_BL=labels_BL,
            vision_mask_BL=mask_BL,
            vision_places_P=mask_BL.flatten().nonzero()[:, 0],
            lengths_B=torch.full((samples,), length),
            images=PackedImages.of(
                [{"pixel_values": torch.randn(3, side, side, generator=random)} for _ in range(samples)]
            ),
            tokens_of_image=(vision,) * samples,
            image_samples_I=torch.arange(samples),
        )
        supervised_N = sequences.supervised_mask_BL.flatten().nonzero()[:, 0]
        targets = {} if preset == "supervised" else self._targets(samples, queries, len(supervised_N), made)
        return TrainBatch(
            sequences=sequences,
            supervised_N=supervised_N,
            labels_N=sequences.supervised_labels_N,
            positions_of_sample=tuple(sequences.supervised_mask_BL.sum(1).tolist()),
            **targets,
        )

    def _targets(self, samples: int, queries: int, positions: int, made: "_Random") -> dict[str, Any]:
        vision, heads, hidden = self.student.vision_tokens, self.teacher.num_heads, self.teacher.hidden_size
        first = TEXT_BEFORE + vision
        top_K = torch.cat([sample * vision + torch.arange(min(16, vision)) for sample in range(samples)])
        ids = made.integers((positions * ENTRIES,), self.teacher.vocab_size)
        return {
            "attention": AttentionTargets(
                rows_BR=torch.arange(first, first + queries).repeat(samples, 1),
                cols_BC=torch.arange(TEXT_BEFORE, first).repeat(samples, 1),
                num_rows_B=[queries] * samples,
                num_cols_B=[vision] * samples,
                coded_BRHC=EncodedTensor(
                    codec="sqrt_u8",
                    parts={
                        "": made.bytes((samples, queries, heads, vision)),
                        "scale": made.scales((samples, queries, heads)),
                    },
                ),
            ),
            "vision_all_PD": made.int8_channel((samples, vision), hidden),
            "vision_top_index_K": top_K,
            "vision_top_embeddings_KD": made.int8_channel((samples, len(top_K) // samples), hidden),
            "logits": TruncatedTargets(
                entries=RaggedEntries(
                    ids_E=ids.to(torch.uint16),
                    values_E=torch.full((positions * ENTRIES,), -4.0, dtype=torch.float16),
                    offsets=torch.arange(positions + 1) * ENTRIES,
                    widest=ENTRIES,
                ),
                tail_logmass_N=torch.full((positions,), -3.0),
            ),
        }

    def load(self, samples: int, length: int, device: str, **settings: Any) -> StudentLoad:
        """What `alignkd plan` would know of such micro-batches."""
        queries, losses = length - TEXT_BEFORE - self.student.vision_tokens, LossConfig()
        return StudentLoad(
            dtype=str(self.dtype).removeprefix("torch."),
            micro_batch=samples,
            length=length,
            supervised=queries,
            queries=queries,
            teacher_heads=self.teacher.num_heads,
            teacher_hidden=self.teacher.hidden_size,
            hidden_logits=False,
            head_chunk_mib=losses.head_chunk_mib,
            attention_chunk_bytes=losses.attention_chunk_bytes(device),
            **settings,
        )

    @property
    def shapes(self) -> ModelShapes:
        """The student's shapes, as `alignkd plan` knows them."""
        return ModelShapes.of(model_size("student", self.student))


@dataclass(frozen=True)
class _Random:
    generator: torch.Generator

    def integers(self, shape: tuple[int, ...], below: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def bytes(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(256, shape, dtype=torch.uint8, generator=self.generator)

    def scales(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator).mul_(0.02).half()

    def int8_channel(self, groups: tuple[int, int], hidden: int) -> EncodedTensor:
        samples, rows = groups
        steps = torch.randint(-127, 128, (samples * rows, hidden), dtype=torch.int8, generator=self.generator)
        parts = {"": steps, "scale": self.scales((samples, hidden))}
        return EncodedTensor(codec="int8_channel", parts=parts, rows_of_group=(rows,) * samples)
