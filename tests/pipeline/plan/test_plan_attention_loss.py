"""The planned memory of the attention loss against the tensors that are alive in it, at the real shape, on meta."""

import pytest
import torch
from attention_loss import HEAD_SIZE, HEADS, TEACHER_HEADS, VISION_TOKENS, work_of
from live_bytes import LiveBytes

from alignkd.pipeline.config.checkpoint_config import checkpoint_config
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.student_train.objective.attention.match import COPIES_OF_FORM, AttentionForm
from alignkd.vlm.families.mobilevlm.model.sizes import model_size

STUDENT = "mtgv/MobileVLM_V2-1.7B"
MIB = 1 << 20


@pytest.mark.parametrize("form", COPIES_OF_FORM)
@pytest.mark.parametrize(("samples", "tokens", "chunk_mib"), [(16, 512, 8), (16, 512, 256), (4, 2048, 64)])
def test_the_attention_loss_takes_what_is_planned(
    form: AttentionForm, samples: int, tokens: int, chunk_mib: int
) -> None:
    work = work_of(samples, tokens, form, torch.bfloat16, "meta")
    rows = work.targets.rows_BR.shape[1]
    with LiveBytes() as live:
        work.run(chunk_mib << 20)
    shapes = ModelShapes.of(model_size(STUDENT, checkpoint_config(STUDENT, None)))
    load = StudentLoad(
        dtype="bfloat16", micro_batch=samples, length=tokens, supervised=rows, queries=rows, vision=VISION_TOKENS,
        teacher_heads=TEACHER_HEADS, teacher_hidden=4096, hidden_logits=False, head_chunk_mib=1,
        attention_chunk_bytes=chunk_mib << 20, attention_copies=COPIES_OF_FORM[form],
    )  # fmt: skip
    planned = student_memory(shapes, load).parts["attention loss"]
    assert shapes.size.num_heads == HEADS and shapes.size.hidden_size == HEADS * HEAD_SIZE
    alive = live.peak + sum(map(nbytes, work.targets.stored_BRHC.parts.values()))
    assert alive <= planned <= 1.4 * alive


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of the stored targets, which exist before the loss."""
    return tensor.untyped_storage().nbytes()
