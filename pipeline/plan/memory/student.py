"""Device memory of training, by the engine for one device or under ZeRO-2."""

from dataclasses import dataclass

from alignkd.pipeline.plan.memory.host import host_bytes
from alignkd.pipeline.plan.memory.loads import ELEMENT, StudentLoad
from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.trained import (
    largest_trained,
    moment_bytes,
    student_weight_bytes,
    trained_parameters,
    trains_head,
)
from alignkd.student_train.engine.one_device.engine import ELEMENTS_AT_ONCE
from alignkd.student_train.engine.zero.config import MAX_BUCKET
from alignkd.student_train.trained.targets import lora_names
from alignkd.vlm.families.sizes import ModelSize
from alignkd.vlm.kernels.choice import Kernels

MIB = 1 << 20
# float32 copies of a chunk of logits that the losses of the student hold
HEAD_COPIES = 6
# bytes that belong to the float32 master weight of a trained weight, beside the weight itself
BESIDE_WEIGHTS = {"float32": 0, "bfloat16": 2, "float16": 4}


@dataclass(frozen=True, kw_only=True)
class _State:
    """Bytes of optimiser and gradients on a device.

    Attributes:
        optimiser: master weights and moments.
        buckets: buffers of ZeRO-2, which are freed before the optimiser step.
        gradients: those of a backward pass, at its end or on their way to the sums.
        sums: sums over micro-batches.
        early: the sums exist while activations do: an earlier micro-batch made them, or the first full bucket.
        step: gradients during the optimiser step.
    """

    optimiser: int
    buckets: int
    gradients: int
    sums: int
    early: bool
    step: int


def student_memory(model: ModelShapes, load: StudentLoad) -> Memory:
    """The memory of training, by part and at its peak."""
    weights = (
        student_weight_bytes(model, load)
        + (2 * teacher_head(model, load) if load.hidden_logits else 0)
        + load.stem_weights
    )
    state = _in_plain_torch(model, load) if load.in_plain_torch else _under_zero(model, load)
    kept, inside = _activations(model, load)
    (head, logits), (attention, rows) = _head(model, load), _attention(model, load)
    # losses end before the backward pass of the layers; gradients appear while activations are freed
    # a chunk of logits has ended before one of attention rows begins
    relations = _relations(model, load)
    losses = head + attention + relations + max(logits, rows)
    passing = max(kept + max(inside, losses), state.gradients, load.stem_pass)
    on_the_way = state.buckets + (state.sums + passing if state.early else max(state.sums, passing))
    peak = weights + state.optimiser + max(on_the_way, state.step)
    host_parts, host = host_bytes(model, load)
    parts = {"weights": weights, "buckets": state.buckets, "optimiser": state.optimiser, "gradients": state.gradients}
    parts |= {"sums of gradients": state.sums, "activations": kept, "a layer's backward pass": inside}
    parts |= {"head and logits": head + logits, "attention loss": attention + rows, "stem's layers": load.stem_pass}
    parts |= {"optimiser step": state.step}
    if relations:
        parts["relations of vision tokens"] = relations
    return Memory(parts=parts, peak=peak, host=host, host_parts=host_parts)


def _in_plain_torch(model: ModelShapes, load: StudentLoad) -> _State:
    """The engine for one device, which keeps of master weights only what the weights do not have."""
    e, trained, largest = load.element, trained_parameters(model, load), largest_trained(model, load)
    optimiser = moment_bytes(model, load) + BESIDE_WEIGHTS[load.dtype] * trained
    gradients, sums = (e * largest, e * trained) if load.accumulates else (e * trained, 0)
    # float32 copies of weights and gradients, of some tensors at a time
    copied = 4 * min(trained, max(largest, ELEMENTS_AT_ONCE)) if e == 2 else 0
    step = e * trained + 2 * copied
    if load.sums_in_float32:
        sums = 4 * trained
        step = sums + copied
    return _State(
        optimiser=optimiser, buckets=0, gradients=gradients, sums=sums, early=load.accumulates, step=step
    )  # fmt: skip


def _under_zero(model: ModelShapes, load: StudentLoad) -> _State:
    """ZeRO-2: every device has a share of master weights, moments and gradients, or none of them."""
    e, trained = load.element, trained_parameters(model, load)
    share = -(-trained // load.devices)
    optimiser = 0 if load.offload else 4 * share + -(-moment_bytes(model, load) // load.devices)
    # the largest parameter's gradient, and its copy: on the way to the host, or to where gradients are added up
    gradients, sums, step = 2 * e * largest_trained(model, load), 0, 0
    if load.sums_in_float32:
        sums = step = 4 * share  # one flat buffer, which AdamW reads directly
    elif not load.offload:
        gradients = e * share
        sums = e * share if load.accumulates else 0
        # the gradients in their own dtype, flattened, and in float32 for AdamW; buckets are freed before
        step = 2 * e * share + (4 * share if e == 2 else 0)
    return _State(
        optimiser=optimiser,
        buckets=e * min(MAX_BUCKET, trained),
        gradients=gradients,
        sums=sums,
        early=load.accumulates or trained > MAX_BUCKET,
        step=step,
    )


def layer_bytes(size: ModelSize, dtype: str, kernels: Kernels = "torch") -> int:
    """Bytes that one decoder layer keeps per token for the backward pass; tests compare them with torch's own count.

    16 bits: 16 D + 4 D_q + 4 D_kv + 8 I + 4 H + 8: both norms keep their float32 input; inputs of the projections,
    queries, keys, values, output of the attention; gate, its activation, up, their product.
    float32: 24 D + 8 D_q + 8 D_kv + 16 I + 4 H + 8.
    Further norms keep at most 8 bytes per value.
    With Liger, e bytes per value: e (4 D + 2 D_q + 2 D_kv + 3 I) + 4 H + 8: norms keep their input and output, the MLP
    gate, up and their product. Compiled layers count as uncompiled ones; they keep no more.
    """
    D, inner, H = size.hidden_size, size.intermediate_size, size.num_heads
    queries, keys = H * size.head_dim, size.num_key_value_heads * size.head_dim
    if kernels == "liger":
        values = 4 * D + 2 * queries + 2 * keys + 3 * inner + size.more_norms
        return ELEMENT[dtype] * values + 4 * H + 8
    if ELEMENT[dtype] == 2:
        return 16 * D + 4 * queries + 4 * keys + 8 * inner + 4 * H + 8 + 8 * size.more_norms
    return 24 * D + 8 * queries + 8 * keys + 16 * inner + 4 * H + 8 + 8 * size.more_norms


def teacher_head(model: ModelShapes, load: StudentLoad) -> int:
    """Parameters of the teacher's lm_head, which is assumed to be in 16 bits."""
    return model.size.vocab_size * load.teacher_hidden


def _activations(model: ModelShapes, load: StudentLoad) -> tuple[int, int]:
    """Bytes that the forward pass keeps, and bytes that the backward pass of one layer needs in addition."""
    e, size = ELEMENT[load.dtype], model.size
    tokens, layer = load.passes * load.micro_batch * load.length, layer_bytes(size, load.dtype, load.kernels)
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


def _head(model: ModelShapes, load: StudentLoad) -> tuple[int, int]:
    """Bytes of the head's gradients, and of a chunk of logits."""
    size, positions = model.size, load.micro_batch * load.supervised
    chunk = min(load.head_chunk_mib * MIB, 4 * size.vocab_size * positions)
    weight_rows = size.vocab_size if trains_head(load.trained) else 0
    rows = weight_rows + positions
    if load.head_positions:  # a pass of its own has gradients of its own
        further = load.micro_batch * load.head_positions
        rows += weight_rows + further
        chunk = max(chunk, min(load.head_chunk_mib * MIB, 4 * size.vocab_size * further))
    return 4 * size.hidden_size * rows, HEAD_COPIES * chunk


def _relations(model: ModelShapes, load: StudentLoad) -> int:
    """Bytes of both models' states at the vision positions in float32, and of the cosines of all pairs of tokens."""
    if not load.relations:
        return 0
    of_image = model.size.vision_tokens or model.image.tokens
    vision = load.vision or load.micro_batch * of_image
    return round(vision * (8 * model.size.hidden_size + 4 * load.teacher_hidden + 20 * of_image))


def _attention(model: ModelShapes, load: StudentLoad) -> tuple[int, int]:
    """Bytes of targets, queries, keys and their gradients in all layers, and of a chunk of rows in one."""
    if not load.queries:
        return 0, 0
    heads, e, columns = model.size.num_heads, ELEMENT[load.dtype], model.size.vision_tokens or load.vision
    # of each layer: the teacher's rows, float32 at most; then rotated queries of the rows and keys, and their gradients
    targets = 4 * load.micro_batch * load.queries * columns * load.teacher_heads
    projected = (e + 4) * load.micro_batch * (load.queries + load.length) * model.size.hidden_size
    return load.attention_layers * (targets + projected), _attention_rows(load, heads, columns)


def _attention_rows(load: StudentLoad, heads: int, columns: int) -> int:
    """Bytes of a chunk of rows: scores, then their 16-bit copy, or targets and selected attention."""
    (over_keys, selected), of_row = load.attention_copies, heads * load.length
    of_targets = load.teacher_heads * columns
    whole = 4 * load.micro_batch * load.queries * of_row
    scores = min(load.attention_chunk_bytes * of_row // max(of_row, of_targets), whole)
    return over_keys * scores + max(scores, scores * (of_targets + selected * heads * columns) // of_row)
