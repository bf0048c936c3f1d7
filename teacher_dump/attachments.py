"""The store-level files that make a store complete: what training and inspection need of the teacher."""

from teacher_dump.store_config import StoreConfig
from vlm.examples import ExampleBuilder
from vlm.model import MobileVLM
from vlm.teacher_head import LM_HEAD_FILE, TOKENIZER_FILE, lm_head_bytes


def make_attachments(store: StoreConfig, builder: ExampleBuilder, model: MobileVLM) -> dict[str, bytes]:
    """Name -> content: the tokenizer always, and for `hidden` logits the matrix that turns states into logits."""
    attachments = {TOKENIZER_FILE: builder.tokenizer.model_file.read_bytes()}
    if store.logits.kind == "hidden":
        attachments[LM_HEAD_FILE] = lm_head_bytes(model.lm_head.weight)
    return attachments
