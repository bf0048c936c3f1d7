"""The store-level files that make a store complete: what training and inspection need of the teacher."""

from torch import Tensor

from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.errors import InputError
from alignkd.vlm.inputs.examples import ExampleBuilder
from alignkd.vlm.stem.extract import extracted_bytes
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, LM_HEAD_KEY, TOKENIZER_FILE, lm_head_bytes
from alignkd.vlm.weights.checkpoint import resolve_checkpoint
from alignkd.vlm.weights.sources import weight_sources


def make_attachments(job: DumpJob, builder: ExampleBuilder) -> dict[str, bytes]:
    """Name -> content: the tokenizer always, for `hidden` logits the matrix that turns states into logits, and the
    teacher's stem where it is to give targets that are not stored.

    They come from the checkpoint's files, in the teacher's dtype: whether a store is complete is known without the
    teacher.
    """
    teacher, attachments = job.teacher, {TOKENIZER_FILE: builder.tokenizer.model_file.read_bytes()}
    if job.store.logits.kind == "hidden":
        attachments[LM_HEAD_FILE] = lm_head_bytes(_lm_head(job))
    if job.store.codecs().from_stem:
        attachments[STEM_FILE] = extracted_bytes(
            teacher.checkpoint, dtype=teacher.torch_dtype, vision_config=teacher.vision_config
        )
    return attachments


def _lm_head(job: DumpJob) -> Tensor:
    folder = resolve_checkpoint(job.teacher.checkpoint)
    for source in weight_sources(folder):
        if LM_HEAD_KEY in source.shapes():
            return next(tensor for key, tensor in source.tensors() if key == LM_HEAD_KEY).to(job.teacher.torch_dtype)
    raise InputError(f"{folder}: no {LM_HEAD_KEY} in it, which logits.kind hidden stores; give a whole checkpoint")
