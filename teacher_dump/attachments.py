"""The files that a store carries: what training and inspection need of the teacher."""

from torch import Tensor

from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.stem.extract import extracted_bytes
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, LM_HEAD_KEY, TOKENIZER_FILE, lm_head_bytes


def make_attachments(job: DumpJob, teacher: Checkpoint) -> dict[str, bytes]:
    """Name -> content: the tokenizer; `lm_head` where logits are stored as hidden states; the teacher's stem where it
    replaces stored targets.

    They come from the checkpoint's files, in the teacher's dtype, so a finished store is recognised without loading
    the teacher.

    Raises:
        InputError: a tensor is missing, or a file cannot be read.
    """
    attachments = {TOKENIZER_FILE: teacher.tokenizer.model_file.read_bytes()}
    if job.store.logits.kind == "hidden":
        attachments[LM_HEAD_FILE] = lm_head_bytes(_lm_head(job, teacher))
    if job.store.codecs().from_stem:
        attachments[STEM_FILE] = extracted_bytes(teacher, dtype=job.teacher.torch_dtype)
    return attachments


def _lm_head(job: DumpJob, teacher: Checkpoint) -> Tensor:
    for source in teacher.sources:
        if LM_HEAD_KEY in source.shapes():
            return next(tensor for key, tensor in source.tensors() if key == LM_HEAD_KEY).to(job.teacher.torch_dtype)
    raise InputError(
        f"{teacher.folder}: no {LM_HEAD_KEY} in it, which logits.kind hidden stores; give a complete checkpoint"
    )
