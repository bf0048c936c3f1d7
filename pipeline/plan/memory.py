"""How much memory a device needs, from shapes alone. Every formula is explained in docs/plan.md, part by part.

What torch allocates is counted. A process on a GPU takes more beside it: the CUDA context, libraries, fragments of the
allocator (`BESIDE_TORCH`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from alignkd.pipeline.plan.host import BESIDE_TRAINING, group_sizes, host_bytes
from alignkd.pipeline.plan.models import ModelShapes
from alignkd.student_train.engine.zero_config import MAX_BUCKET, sums_in_float32
from alignkd.teacher_dump.operation.shard_thread import QUEUE_BATCHES
from alignkd.teacher_dump.targets.capture import ATTENTION_BYTES, IMAGES_AT_ONCE
from alignkd.teacher_dump.targets.distribution import POSITIONS_AT_ONCE
from alignkd.vlm.hardware.devices import TORCH_DTYPES, Quantization
from alignkd.vlm.model.sizes import ModelSize

BESIDE_TORCH = 1 << 30
ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


# AdamW: float32 master weight and two moments
OPTIMISER_BYTES = 12
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device by what they hold; parts that are never there at the same time are not added up.

    Attributes:
        parts: part -> bytes, in the order of reading.
        peak: most at one time.
        host: bytes of host memory, all processes of the machine together; 0 where it is not planned.
        host_parts: part -> bytes of it, as `parts`.
    """

    parts: Mapping[str, int]
    peak: int
    host: int = 0
    host_parts: Mapping[str, int] = field(default_factory=dict)

    def fits(self, device_bytes: int) -> bool:
        """Whether a device of that size holds it."""
        return self.peak + BESIDE_TORCH <= device_bytes

    def fits_host(self, host_bytes: int) -> bool:
        """Whether a machine of that much memory holds it."""
        return self.host + BESIDE_TRAINING <= host_bytes


@dataclass(frozen=True, kw_only=True)
class StudentLoad:
    """What decides a student's memory beside its shapes.

    Attributes:
        dtype: of weights and activations.
        micro_batch: samples per forward pass and device.
        length: embedded tokens of the longest sample; a batch is padded to it.
        supervised: positions with a label next, of the sample with the most.
        queries: text positions after the image, of the sample with the most; 0 without the attention loss.
        teacher_heads, teacher_hidden: of the store's teacher.
        hidden_logits: the store keeps hidden states, so the teacher's lm_head is beside the student.
        head_chunk_mib, attention_chunk_mib: as in `train.losses`.
        devices: ZeRO-2 shares gradients and optimiser state among them.
        offload: gradients, master weights and moments are in host memory.
        gradient_checkpointing: only layer inputs are kept for the backward pass.
        accumulates: more than one micro-batch per optimiser step.
        stem_weights: bytes of the teacher's stem beside the student.
        float32_gradients: as in `train`.
        data_workers: processes of each device that prepare batches.
        batch_bytes: of a micro-batch as it is prepared.
    """

    dtype: str
    micro_batch: int
    length: int
    supervised: int
    queries: int
    teacher_heads: int
    teacher_hidden: int
    hidden_logits: bool
    head_chunk_mib: int
    attention_chunk_mib: int
    devices: int = 1
    offload: bool = False
    gradient_checkpointing: bool = False
    accumulates: bool = False
    stem_weights: int = 0
    float32_gradients: bool = True
    data_workers: int = 0
    batch_bytes: int = 0

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return ELEMENT[self.dtype]

    @property
    def sums_in_float32(self) -> bool:
        """Whether gradients are added up in a float32 buffer on the device."""
        return sums_in_float32(self.float32_gradients, TORCH_DTYPES[self.dtype], self.offload, self.accumulates)


@dataclass(frozen=True, kw_only=True)
class TeacherLoad:
    """What decides the teacher pass's memory beside the teacher's shapes.

    Attributes:
        tokens: padded tokens of a forward pass: the budget, or one sample that is longer.
        longest: embedded tokens of a sample.
        images: shown by the samples of a forward pass, and those kept for others of their window.
        supervised, queries: of all samples of a forward pass, positions with a label next and text positions after the
            image; 0 queries where no attention is computed.
        stored: bytes of the targets of a forward pass as the store keeps them.
        logit_bytes: bytes per logit in work, see `LOGIT_BYTES`; 0 where no logits are computed.
    """

    dtype: str
    quantization: Quantization
    tokens: int
    longest: int
    images: int
    supervised: int
    queries: int
    stored: int
    logit_bytes: int


# batches whose targets wait for the writer: its queue, the one it writes, the one that is computed
BATCHES_IN_FLIGHT = QUEUE_BATCHES + 2
# Bytes per logit in work, by kind. Kept tokens: the product, float32 log-probabilities, sorted values and their int64
# positions, masses. Draws: the product, float32 log-probabilities, running sums, and the entropy in float64.
LOGIT_BYTES = {"full": 30, "topk": 30, "nucleus": 30, "sampled": 40, "hidden": 0, "none": 0}
# float32 copies of a chunk of logits that the losses of the student hold
HEAD_COPIES = 6
# float32 copies of the attention rows in work: of the teacher pass, and of training, where targets of the chunk count
ATTENTION_COPIES = 3
TRAINED_ATTENTION_COPIES = 2


def layer_bytes(size: ModelSize, dtype: str) -> int:
    """What one decoder layer keeps per token for the backward pass: a test compares it with torch's own count.

    16 bits: 20 D + 4 D_kv + 8 I + 4 H + 8: both norms keep their float32 input; inputs of the projections, queries,
    keys, values, output of the attention; gate, its activation, up, their product.
    float32: 32 D + 8 D_kv + 16 I + 4 H + 8.
    """
    D, inner, H = size.hidden_size, size.intermediate_size, size.num_heads
    kv = size.num_key_value_heads * D // H
    if ELEMENT[dtype] == 2:
        return 20 * D + 4 * kv + 8 * inner + 4 * H + 8
    return 32 * D + 8 * kv + 16 * inner + 4 * H + 8


def trained_parameters(model: ModelShapes, load: StudentLoad) -> int:
    """All but the frozen vision tower, and the two adapters."""
    return sum(group_sizes(model, load))


def student_memory(model: ModelShapes, load: StudentLoad) -> Memory:
    """Training under ZeRO-2 with torch's AdamW."""
    e, trained = ELEMENT[load.dtype], trained_parameters(model, load)
    share = -(-trained // load.devices)
    frozen = model.size.parameters["vision_tower"]
    weights = e * (trained + frozen) + (2 * teacher_head(model, load) if load.hidden_logits else 0) + load.stem_weights
    parts = {"weights": weights, "buckets": e * min(MAX_BUCKET, trained)}
    # the largest parameter's gradient, and its copy: on the way to the host, or to where gradients are added up
    passing_by = 2 * e * model.size.vocab_size * model.size.hidden_size
    if not load.offload:
        parts["optimiser"] = OPTIMISER_BYTES * share
    if load.sums_in_float32:
        parts["gradients"], accumulated = passing_by, 4 * share  # one flat buffer, which AdamW reads as it is
        step = accumulated
    elif load.offload:
        parts["gradients"], accumulated, step = passing_by, 0, 0
    else:
        parts["gradients"] = e * share
        accumulated = e * share if load.accumulates else 0
        # the gradients as they are, flattened, and in float32 for AdamW; buckets are given back before
        step = 2 * e * share + (4 * share if e == 2 else 0)
    if accumulated:
        parts["sums of gradients"] = accumulated
    kept, inside = _activations(model, load)
    head, attention = _head(model, load), _attention(model, load)
    # losses are through before the layers' turn comes, and gradients come as activations go
    passing = max(kept + max(inside, head + attention), parts["gradients"])
    standing = weights + parts.get("optimiser", 0)
    # sums are there before the first backward pass if there was one before, else from the first full bucket on
    meets_activations = load.accumulates or trained > MAX_BUCKET
    on_the_way = parts["buckets"] + (accumulated + passing if meets_activations else max(accumulated, passing))
    peak = standing + max(on_the_way, step)
    host_parts, host = host_bytes(model, load)
    parts |= {"activations": kept, "a layer's backward pass": inside, "head and logits": head}
    parts |= {"attention loss": attention, "optimiser step": step}
    return Memory(parts=parts, peak=peak, host=host, host_parts=host_parts)


def teacher_head(model: ModelShapes, load: StudentLoad) -> int:
    """Parameters of the teacher's lm_head, taken to be in 16 bits."""
    return model.size.vocab_size * load.teacher_hidden


def teacher_memory(model: ModelShapes, load: TeacherLoad) -> Memory:
    """The forward pass; nothing is kept for a backward one."""
    e, D = ELEMENT[load.dtype], model.size.hidden_size
    plain = load.quantization == "none"
    weights = e * model.size.parameters["total"] if plain else model.size.weight_bytes[load.quantization]
    # input of the layer, residual and normed input, and the widest moment: gate, up and product, or a norm in float32
    widest = max(3 * e * model.size.intermediate_size, 12 * D)
    decoder = load.tokens * (3 * e * D + widest)
    # queries of the rows and keys, being rotated; rows in work; the kept columns of all rows in float32, and encoded
    heads = model.size.num_heads
    work = min(ATTENTION_BYTES, 4 * load.queries * heads * load.longest)
    rows = ATTENTION_COPIES * work + 8 * load.queries * heads * model.size.vision_tokens
    rows += 4 * e * D * load.tokens if load.queries else 0
    logits = min(load.supervised, POSITIONS_AT_ONCE) * model.size.vocab_size * load.logit_bytes
    states = e * D * (load.tokens + load.supervised)
    keys = model.size.num_key_value_heads * D // heads
    parts = {
        "weights": weights,
        "vision embeddings": e * D * model.size.vision_tokens * load.images,
        "hidden states": states,
        "first layer's queries and keys": e * (D + keys) * load.tokens if load.queries else 0,
        "targets in flight": BATCHES_IN_FLIGHT * load.stored,
        "decoder": decoder,
        "vision tower": tower_bytes(model, min(load.images, IMAGES_AT_ONCE), e),
        "attention rows": rows,
        "logits": logits,
    }
    moments = [parts["decoder"], parts["vision tower"], parts["attention rows"], parts["logits"]]
    standing = [
        parts[name]
        for name in ("vision embeddings", "hidden states", "first layer's queries and keys", "targets in flight")
    ]
    return Memory(parts=parts, peak=weights + sum(standing) + max(moments))


def tower_bytes(model: ModelShapes, images: int, element: int) -> int:
    """The vision tower and the projector over so many images, nothing kept: hidden states, and one layer's inside."""
    patches, width = model.vision_patches, model.vision_hidden_size
    tower = (patches + 1) * element * (3 * width + max(2 * model.vision_intermediate_size, 4 * width))
    projector = patches * element * 2 * model.size.hidden_size
    pixels = 4 * 3 * model.size.image_size**2
    return images * (max(tower, projector) + pixels)


def _activations(model: ModelShapes, load: StudentLoad) -> tuple[int, int]:
    """What the forward pass keeps, and what the backward pass of one layer needs beside it."""
    e, size = ELEMENT[load.dtype], model.size
    tokens, layer = load.micro_batch * load.length, layer_bytes(size, load.dtype)
    kept = size.num_layers * (e * size.hidden_size if load.gradient_checkpointing else layer) * tokens
    # spliced input, output, the last norm's float32
    ends = (2 * e + 8) * tokens * size.hidden_size
    projector = load.micro_batch * model.vision_patches * e * (model.vision_hidden_size + 4 * size.hidden_size)
    gradients = tokens * e * (3 * size.intermediate_size + 2 * size.hidden_size)
    return kept + ends + projector, gradients + (layer * tokens if load.gradient_checkpointing else 0)


def _head(model: ModelShapes, load: StudentLoad) -> int:
    size, positions = model.size, load.micro_batch * load.supervised
    chunk = min(load.head_chunk_mib * MIB, 4 * size.vocab_size * positions)
    return 4 * size.hidden_size * (size.vocab_size + positions) + HEAD_COPIES * chunk


def _attention(model: ModelShapes, load: StudentLoad) -> int:
    if not load.queries:
        return 0
    heads, e = model.size.num_heads, ELEMENT[load.dtype]
    whole = 4 * load.micro_batch * heads * load.queries * load.length
    rows = TRAINED_ATTENTION_COPIES * min(load.attention_chunk_mib * MIB, whole)
    kept = load.micro_batch * load.queries * model.size.vision_tokens
    # the teacher's rows as they came, float32 at most; queries and keys, rotated, and their gradients in float32
    targets = 4 * kept * load.teacher_heads
    return rows + targets + (2 * e + 8) * load.micro_batch * load.length * model.size.hidden_size
