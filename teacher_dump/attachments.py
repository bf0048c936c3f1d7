"""The files that a store carries: what training and inspection need of the teacher."""

from collections.abc import Iterator

from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.stem import smallest_depth
from alignkd.vlm.stem.extract import extracted_bytes
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, head_bytes


def make_attachments(job: DumpJob, teacher: Checkpoint) -> dict[str, bytes]:
    """Name -> content: files that show tokens as text; the output head where hidden states stand for logits; the
    teacher's stem where it replaces stored targets, or where the configuration sets its depth.

    They come from the checkpoint's files, in the teacher's dtype, so a finished store is recognised without loading
    the teacher.

    Raises:
        InputError: a tensor is missing, a file cannot be read, or there is no stem of this depth.
    """
    attachments = dict(teacher.attachments())
    if job.store.needs_head:
        attachments[LM_HEAD_FILE] = head_bytes(teacher.lm_head(job.teacher.torch_dtype))
    depth = job.store.stem_depth(teacher.config)
    if depth is not None:
        attachments[STEM_FILE] = extracted_bytes(teacher, dtype=job.teacher.torch_dtype, depth=depth)
    return attachments


def remarks_on_stem(job: DumpJob, teacher: Checkpoint) -> Iterator[str]:
    """The line that a dump of a quantised teacher prints if whole layers are in the store's stem; else nothing."""
    depth, quantization = job.store.stem_depth(teacher.config), job.teacher.quantization
    if depth is None or quantization == "none" or depth <= smallest_depth(teacher.config):
        return
    yield (
        f"teacher.quantization is {quantization}, but the stem has layers 0 to {depth - 2} whole in "
        f"{job.teacher.dtype}: the attention that it gives is that of the full teacher; stored targets are those of "
        "the quantised one"
    )
