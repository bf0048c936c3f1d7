"""Device memory of the teacher pass."""

from alignkd.pipeline.plan.memory.loads import ELEMENT, TeacherLoad
from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.teacher_dump.operation.shard_thread import QUEUE_BATCHES
from alignkd.teacher_dump.targets.logits.distribution import POSITIONS_AT_ONCE
from alignkd.teacher_dump.targets.seen_images import BYTES_AT_ONCE, IMAGES_AT_ONCE
from alignkd.vlm.attention.attention_rows import CHUNK_BYTES

# batches whose targets wait for the writer: those in its queue, the one it writes, the one that is computed
BATCHES_IN_FLIGHT = QUEUE_BATCHES + 2
# copies of the vision embeddings in models of transformers: those of each image, of the batch, joined by the model
VISION_COPIES = 3
# float32 copies of the attention rows in progress
ATTENTION_COPIES = 3


def teacher_memory(model: ModelShapes, load: TeacherLoad) -> Memory:
    """The memory of a forward pass that keeps nothing for a backward pass."""
    e, D = ELEMENT[load.dtype], model.size.hidden_size
    plain = load.quantization == "none"
    weights = e * model.size.parameters["total"] if plain else model.size.weight_bytes[load.quantization]
    # input of the layer, residual, normed input, and its largest tensors: gate, up and product, or a norm in float32
    widest = max(3 * e * model.size.intermediate_size, 12 * D)
    # deepstack features are added to a copy of the hidden states
    decoder = load.tokens * ((3 if model.size.tower.levels == 1 else 4) * e * D + widest)
    # rotated queries and keys; rows in progress; the kept columns of all rows, in float32 and encoded
    heads = model.size.num_heads
    work = min(CHUNK_BYTES, 4 * load.queries * heads * load.longest)
    rows = ATTENTION_COPIES * work + 8 * load.queries * heads * (model.size.vision_tokens or load.largest)
    rows += 4 * e * model.query_width * load.tokens if load.queries else 0
    logits = min(load.supervised, POSITIONS_AT_ONCE) * model.size.vocab_size * load.logit_bytes
    vision = load.vision or load.images * model.image.tokens
    states = e * D * ((1 + load.recorded) * load.tokens + load.supervised)
    if load.vision_states:  # those at the vision positions, as they are and in float32 for the codec
        states += (e + 4) * D * min(vision, load.tokens)
    copies = VISION_COPIES * model.size.tower.levels if model.size.vision_tokens is None else 1
    parts = {
        "weights": weights,
        "vision embeddings": e * D * copies * vision,
        "hidden states": states,
        "queries and keys": e * (model.query_width + model.key_width) * load.tokens * load.watched
        if load.queries
        else 0,
        "targets in flight": BATCHES_IN_FLIGHT * load.stored,
        "decoder": decoder,
        "vision tower": tower_bytes(model, _images_at_once(model, load, vision), e),
        "attention rows": rows,
        "logits": logits,
    }
    moments = [parts["decoder"], parts["vision tower"], parts["attention rows"], parts["logits"]]
    standing = [parts[name] for name in ("vision embeddings", "hidden states", "queries and keys", "targets in flight")]
    return Memory(parts=parts, peak=weights + sum(standing) + max(moments))


def tower_bytes(model: ModelShapes, images: float, element: int) -> int:
    """Bytes of the vision tower and the projector for that many images: hidden states, and tensors of one layer."""
    patches, width = model.image.patches, model.size.tower.hidden_size
    tower = (patches + 1) * element * (3 * width + max(2 * model.size.tower.intermediate_size, 4 * width))
    projector = patches * element * 2 * model.size.hidden_size
    return round(images * (max(tower, projector) + model.image.array_bytes))


def _images_at_once(model: ModelShapes, load: TeacherLoad, vision: int) -> float:
    """What the tower takes at once, in images like `model.image`: as `teacher_dump.targets.seen_images` groups them."""
    most = max(load.largest, BYTES_AT_ONCE * model.image.tokens / model.image.array_bytes)
    return min(load.images, IMAGES_AT_ONCE, vision / model.image.tokens, most / model.image.tokens)
