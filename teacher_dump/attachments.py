"""The files that a store carries: what training and inspection need of the teacher."""

from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.stem.extract import extracted_bytes
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, head_bytes


def make_attachments(job: DumpJob, teacher: Checkpoint) -> dict[str, bytes]:
    """Name -> content: files that show tokens as text; the output head where logits are stored as hidden states;
    the teacher's stem where it replaces stored targets.

    They come from the checkpoint's files, in the teacher's dtype, so a finished store is recognised without loading
    the teacher.

    Raises:
        InputError: a tensor is missing, or a file cannot be read.
    """
    attachments = dict(teacher.attachments())
    if job.store.logits.kind == "hidden":
        attachments[LM_HEAD_FILE] = head_bytes(teacher.lm_head(job.teacher.torch_dtype))
    if job.store.from_stem:
        attachments[STEM_FILE] = extracted_bytes(teacher, dtype=job.teacher.torch_dtype)
    return attachments
