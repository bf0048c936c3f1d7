"""Device memory of training under ZeRO-2 with torch's AdamW."""

from alignkd.student_train.engine.zero_config import MAX_BUCKET

from alignkd.pipeline.plan.memory.host import host_bytes
from alignkd.pipeline.plan.memory.loads import ELEMENT, StudentLoad
from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.trained import (
    STATE_BYTES,
    largest_trained,
    student_weight_bytes,
    trained_parameters,
    trains_head,
)
from alignkd.student_train.trained.targets import lora_names
from alignkd.vlm.families.sizes import ModelSize

MIB = 1 << 20
# float32 copies of a chunk of logits that the losses of the student hold
HEAD_COPIES = 6
# float32 copies of the attention rows in progress; the targets of the chunk count as one
TRAINED_ATTENTION_COPIES = 2


def student_memory(model: ModelShapes, load: StudentLoad) -> Memory:
    """The memory of training, by part and at its peak."""
    e, trained = ELEMENT[load.dtype], trained_parameters(model, load)
    share = -(-trained // load.devices)
    weights = (
        student_weight_bytes(model, load)
        + (2 * teacher_head(model, load) if load.hidden_logits else 0)
        + load.stem_weights
    )
    parts = {"weights": weights, "buckets": e * min(MAX_BUCKET, trained)}
    # the largest parameter's gradient, and its copy: on the way to the host, or to where gradients are added up
    passing_by = 2 * e * largest_trained(model, load)
    if not load.offload:
        parts["optimiser"] = STATE_BYTES * share
    if load.sums_in_float32:
        parts["gradients"], accumulated = passing_by, 4 * share  # one flat buffer, which AdamW reads directly
        step = accumulated
    elif load.offload:
        parts["gradients"], accumulated, step = passing_by, 0, 0
    else:
        parts["gradients"] = e * share
        accumulated = e * share if load.accumulates else 0
        # the gradients in their own dtype, flattened, and in float32 for AdamW; buckets are freed before
        step = 2 * e * share + (4 * share if e == 2 else 0)
    if accumulated:
        parts["sums of gradients"] = accumulated
    kept, inside = _activations(model, load)
    head, attention = _head(model, load), _attention(model, load)
    # losses end before the backward pass of the layers; gradients appear while activations are freed
    passing = max(kept + max(inside, head + attention), parts["gradients"], load.stem_pass)
    standing = weights + parts.get("optimiser", 0)
    # sums exist before the backward pass if an earlier one made them, otherwise from the first full bucket on
    meets_activations = load.accumulates or trained > MAX_BUCKET
    on_the_way = parts["buckets"] + (accumulated + passing if meets_activations else max(accumulated, passing))
    peak = standing + max(on_the_way, step)
    host_parts, host = host_bytes(model, load)
    parts |= {"activations": kept, "a layer's backward pass": inside, "head and logits": head}
    parts |= {"attention loss": attention, "stem's layers": load.stem_pass, "optimiser step": step}
    return Memory(parts=parts, peak=peak, host=host, host_parts=host_parts)


def layer_bytes(size: ModelSize, dtype: str) -> int:
    """Bytes that one decoder layer keeps per token for the backward pass; a test compares them with torch's own count.

    16 bits: 16 D + 4 D_q + 4 D_kv + 8 I + 4 H + 8: both norms keep their float32 input; inputs of the projections,
    queries, keys, values, output of the attention; gate, its activation, up, their product.
    float32: 24 D + 8 D_q + 8 D_kv + 16 I + 4 H + 8.
    Further norms keep at most 8 bytes per value.
    """
    D, inner, H = size.hidden_size, size.intermediate_size, size.num_heads
    queries, keys = H * size.head_dim, size.num_key_value_heads * size.head_dim
    if ELEMENT[dtype] == 2:
        return 16 * D + 4 * queries + 4 * keys + 8 * inner + 4 * H + 8 + 8 * size.more_norms
    return 24 * D + 8 * queries + 8 * keys + 16 * inner + 4 * H + 8 + 8 * size.more_norms


def teacher_head(model: ModelShapes, load: StudentLoad) -> int:
    """Parameters of the teacher's lm_head, which is assumed to be in 16 bits."""
    return model.size.vocab_size * load.teacher_hidden


def _activations(model: ModelShapes, load: StudentLoad) -> tuple[int, int]:
    """Bytes that the forward pass keeps, and bytes that the backward pass of one layer needs in addition."""
    e, size = ELEMENT[load.dtype], model.size
    tokens, layer = load.passes * load.micro_batch * load.length, layer_bytes(size, load.dtype)
    patches = round(model.patches_of(load.vision or model.image.tokens))
    kept = size.num_layers * (e * size.hidden_size if load.gradient_checkpointing else layer) * tokens
    # spliced input, output, float32 copy of the last norm
    ends = (2 * e + 8) * tokens * size.hidden_size
    projector = load.micro_batch * patches * e * (size.tower.hidden_size + 4 * size.hidden_size)
    tokens //= load.passes  # backward runs through one pass after the other
    gradients = tokens * e * (3 * size.intermediate_size + 2 * size.hidden_size)
    lora = tokens * _lora_bytes(model, load)
    if load.gradient_checkpointing:
        return kept + ends + projector, gradients + layer * tokens + lora // size.num_layers + _expanded(model, load)
    return kept + lora + ends + projector, gradients + _expanded(model, load)


def _lora_bytes(model: ModelShapes, load: StudentLoad) -> int:
    """Bytes per token that LoRA keeps in all layers: the input of the second matrix; with dropout, of the first one."""
    lora, e = load.trained.lora_settings, ELEMENT[load.dtype]
    if lora is None:
        return 0
    inputs = [model.size.linear_layers[name][0] for name in lora_names(lora.targets, model.size.linear_layers).chosen]
    dropped = (e + 1) * sum(inputs) if lora.dropout else 0  # the input and the mask
    return e * lora.rank * len(inputs) + dropped


def _expanded(model: ModelShapes, load: StudentLoad) -> int:
    """Bytes of the largest quantised weight, which is expanded for its product."""
    if load.trained.quantization == "none":
        return 0
    return ELEMENT[load.dtype] * max(wide * deep for wide, deep in model.size.linear_layers.values())


def _head(model: ModelShapes, load: StudentLoad) -> int:
    size, positions = model.size, load.micro_batch * load.supervised
    chunk = min(load.head_chunk_mib * MIB, 4 * size.vocab_size * positions)
    rows = (size.vocab_size if trains_head(load.trained) else 0) + positions
    return 4 * size.hidden_size * rows + HEAD_COPIES * chunk


def _attention(model: ModelShapes, load: StudentLoad) -> int:
    if not load.queries:
        return 0
    heads, e = model.size.num_heads, ELEMENT[load.dtype]
    whole = 4 * load.micro_batch * heads * load.queries * load.length
    rows = TRAINED_ATTENTION_COPIES * min(load.attention_chunk_mib * MIB, whole)
    kept = load.micro_batch * load.queries * (model.size.vision_tokens or load.vision)
    # of each layer: the teacher's rows, float32 at most; then rotated queries and keys, and their gradients in float32
    targets = 4 * kept * load.teacher_heads
    projected = (2 * e + 8) * load.micro_batch * load.length * model.size.hidden_size
    return rows + load.attention_layers * (targets + projected)
