"""How much of the device's memory a teacher pass takes beside the weights: arithmetic, from shapes alone.

An upper bound of what is alive at once; the allocator's fragmentation comes on top. Letters: T padded tokens of a
batch, D hidden size, I intermediate size, V vocabulary, Ht heads, P vision tokens.
"""

import torch

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED
from alignkd.teacher_dump.config import TeacherConfig
from alignkd.teacher_dump.operation.shard_thread import QUEUE_BATCHES
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.teacher_dump.targets.capture import ATTENTION_BYTES, IMAGES_AT_ONCE
from alignkd.teacher_dump.targets.distribution import POSITIONS_AT_ONCE
from alignkd.vlm.model.config import VLMConfig

# scores in the model's dtype (counted as float32), in float32, masked, softmaxed
_SCORE_COPIES = 4
# the queue, the batch that is appended and the one that is computed
_BATCHES_IN_FLIGHT = QUEUE_BATCHES + 2


def device_bytes(config: VLMConfig, teacher: TeacherConfig, store: StoreConfig, longest: int) -> dict[str, int]:
    """Bytes by purpose, and `peak`: what of it is needed at once; weights are not in it.

    Args:
        longest: embedded tokens of the longest sample, which may exceed the token budget.
    """
    width = torch.empty(0, dtype=teacher.torch_dtype).element_size()
    tokens, D = max(teacher.token_budget, longest), config.hidden_size
    found = {
        "sequence": 4 * tokens * D * width,  # spliced embeddings, first layer's queries and keys, last hidden states
        "layer": _layer(config, tokens, width),
        "images": _images(config, teacher, width),
        "attention": _attention(config, store, tokens, longest, width),
        "logits": _logits(config, store, width),
        "in_flight": _BATCHES_IN_FLIGHT * tokens * _stored_per_token(config, store),
    }
    together = found["sequence"] + found["images"] + found["in_flight"]
    return {**found, "peak": together + max(found["layer"], found["attention"], found["logits"])}


def _layer(config: VLMConfig, tokens: int, width: int) -> int:
    """The widest moment of a decoder layer: residual, normed states, and three tensors of the MLP; or the norm."""
    mlp = (2 * config.hidden_size + 3 * int(config.llama.intermediate_size)) * width
    norm = config.hidden_size * (2 * width + 3 * 4)  # in float32
    return tokens * max(mlp, norm)


def _images(config: VLMConfig, teacher: TeacherConfig, width: int) -> int:
    """One call of tower and projector, and the embeddings of a window's images."""
    vision = config.vision
    side = int(vision.image_size) // int(vision.patch_size)
    per_token = (4 * int(vision.hidden_size) + 2 * int(vision.intermediate_size)) * width
    pixels = 3 * int(vision.image_size) ** 2 * (4 + width)
    call = IMAGES_AT_ONCE * ((side**2 + 1) * per_token + pixels + 3 * side**2 * config.hidden_size * width)
    return call + teacher.window * config.vision_tokens * config.hidden_size * width


def _attention(config: VLMConfig, store: StoreConfig, tokens: int, longest: int, width: int) -> int:
    """First-layer attention: queries, keys, both rotated and being so, a chunk of scores, all probabilities."""
    if store.attention in NOT_STORED and store.vision_top in NOT_STORED:
        return 0
    probabilities = 2 * 4 * tokens * config.num_heads * config.vision_tokens
    scores = min(ATTENTION_BYTES, 4 * tokens * config.num_heads * longest)
    return 6 * tokens * config.hidden_size * width + _SCORE_COPIES * scores + probabilities


def _logits(config: VLMConfig, store: StoreConfig, width: int) -> int:
    """A chunk of positions: logits, float32, log-probabilities, and the work of choosing; draws need it in 64 bits."""
    if store.logits.kind in ("none", "hidden"):
        return 0
    per_logit = width + 4 + 4 + (4 * 8 if store.logits.kind == "sampled" else 4)
    return POSITIONS_AT_ONCE * config.vocab_size * per_logit


def _stored_per_token(config: VLMConfig, store: StoreConfig) -> int:
    """Bytes of targets that wait for the host, were every token a query, a vision token and supervised."""
    D, heads_by_vision = config.hidden_size, config.num_heads * config.vision_tokens
    found = _code_bytes(store.attention, heads_by_vision) + _code_bytes(store.vision_all, D)
    if store.vision_top != FROM_ALL:
        found += _code_bytes(store.vision_top, D)
    codec = store.logits
    entries = {"topk": codec.top_k, "nucleus": codec.max_entries, "sampled": codec.num_draws}
    if codec.kind in ("hidden", "full"):
        assert codec.dtype is not None
        return found + _code_bytes(codec.dtype, D if codec.kind == "hidden" else config.vocab_size)
    return found + 8 * min(entries.get(codec.kind) or 0, config.vocab_size)


def _code_bytes(codec: str, values: int) -> int:
    return 0 if codec in NOT_STORED else get_codec(codec).parts((1, values))[""][0].itemsize * values
