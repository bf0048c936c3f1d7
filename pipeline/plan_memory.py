"""How much memory a device needs, from shapes alone. Every formula is explained in docs/plan.md, part by part.

What torch allocates is counted. A process on a GPU takes more beside it: the CUDA context, libraries, fragments of the
allocator (`BESIDE_TORCH`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.plan_models import ModelShapes
from teacher_dump.capture import ATTENTION_BYTES, IMAGES_AT_ONCE
from teacher_dump.distribution import POSITIONS_AT_ONCE
from vlm.devices import Quantization
from vlm.family import ModelSize

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
        host: bytes of host memory that offloading takes, all devices of the machine together.
    """

    parts: Mapping[str, int]
    peak: int
    host: int = 0

    def fits(self, device_bytes: int) -> bool:
        """Whether a device of that size holds it."""
        return self.peak + BESIDE_TORCH <= device_bytes


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


@dataclass(frozen=True, kw_only=True)
class TeacherLoad:
    """What decides the teacher pass's memory beside the teacher's shapes.

    Attributes:
        tokens: padded tokens of a forward pass: the budget, or one sample that is longer.
        longest: embedded tokens of a sample.
        images: shown by the samples of a forward pass, and those kept for others of their window.
        supervised, queries: of all samples of a forward pass, positions with a label next and text positions after the
            image.
        keeps_logits: logits are computed (not where they are kept as hidden states, or not at all).
    """

    dtype: str
    quantization: Quantization
    tokens: int
    longest: int
    images: int
    supervised: int
    queries: int
    keeps_logits: bool


# bytes per logit in work: the product, float32 log-probabilities, sorted values and their int64 positions, masses
LOGIT_BYTES = 30
# float32 copies of a chunk of logits that the losses of the student hold
HEAD_COPIES = 6
# float32 copies of the attention rows in work
ATTENTION_COPIES = 3


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
    adapters = (load.teacher_heads + 1) * model.size.num_heads + (load.teacher_hidden + 1) * model.size.hidden_size
    return model.size.parameters["total"] - model.size.parameters["vision_tower"] + adapters


def student_memory(model: ModelShapes, load: StudentLoad) -> Memory:
    """Training under ZeRO-2 with torch's AdamW."""
    e, trained = ELEMENT[load.dtype], trained_parameters(model, load)
    share = -(-trained // load.devices)
    largest = model.size.vocab_size * model.size.hidden_size
    bucket = e * min(50_000_000, trained)
    frozen = model.size.parameters["vision_tower"]
    weights = e * (trained + frozen) + (2 * largest_head(model, load) if load.hidden_logits else 0)
    parts = {"weights": weights}
    if load.offload:
        parts["gradients"] = 2 * e * largest
        step = 0
    else:
        parts["optimiser"] = OPTIMISER_BYTES * share
        parts["gradients"] = e * share * (2 if load.accumulates else 1)
        # the gradients as they are, flattened, and in float32 for AdamW
        step = 2 * e * share + (4 * share if e == 2 else 0)
    parts["buckets"] = bucket
    passing = _activations(model, load) | _head(model, load) | _attention(model, load)
    standing = weights + parts.get("optimiser", 0) + bucket
    peak = standing + max(parts["gradients"] + sum(passing.values()), step)
    host = (OPTIMISER_BYTES + 4 + e) * trained if load.offload else 0
    return Memory(parts={**parts, **passing, "optimiser step": step}, peak=peak, host=host)


def largest_head(model: ModelShapes, load: StudentLoad) -> int:
    """Parameters of the teacher's lm_head, kept in 16 bits."""
    return model.size.vocab_size * load.teacher_hidden


def teacher_memory(model: ModelShapes, load: TeacherLoad) -> Memory:
    """The forward pass; nothing is kept for a backward one."""
    e, D = ELEMENT[load.dtype], model.size.hidden_size
    plain = load.quantization == "none"
    weights = e * model.size.parameters["total"] if plain else model.size.weight_bytes[load.quantization]
    # the residual and the normed input, beside the widest moment of a layer: gate, up and product, or a norm in float32
    widest = max(3 * e * model.size.intermediate_size, 12 * D)
    decoder = load.tokens * (2 * e * D + widest)
    # rows in work; the columns kept of all of them in float32, and once more while they are encoded
    heads = model.size.num_heads
    work = min(ATTENTION_BYTES, 4 * load.queries * heads * load.longest)
    rows = ATTENTION_COPIES * work + 8 * load.queries * heads * model.size.vision_tokens
    logits = min(load.supervised, POSITIONS_AT_ONCE) * model.size.vocab_size * LOGIT_BYTES if load.keeps_logits else 0
    states = e * D * (load.tokens + load.supervised)
    parts = {
        "weights": weights,
        "vision embeddings": e * D * model.size.vision_tokens * load.images,
        "hidden states": states,
        "decoder": decoder,
        "vision tower": tower_bytes(model, min(load.images, IMAGES_AT_ONCE), e),
        "attention rows": rows,
        "logits": logits,
    }
    moments = [parts["decoder"], parts["vision tower"], parts["attention rows"], parts["logits"]]
    return Memory(parts=parts, peak=weights + parts["vision embeddings"] + states + max(moments))


def tower_bytes(model: ModelShapes, images: int, element: int) -> int:
    """The vision tower and the projector over so many images, nothing kept: hidden states, and one layer's inside."""
    patches, width = model.vision_patches, model.vision_hidden_size
    tower = (patches + 1) * element * (3 * width + max(2 * model.vision_intermediate_size, 4 * width))
    projector = patches * element * 2 * model.size.hidden_size
    pixels = 4 * 3 * model.size.image_size**2
    return images * (max(tower, projector) + pixels)


def _activations(model: ModelShapes, load: StudentLoad) -> dict[str, int]:
    e, D = ELEMENT[load.dtype], model.size.hidden_size
    tokens = load.micro_batch * load.length
    layer = layer_bytes(model.size, load.dtype)
    # beside what is kept, the backward pass of a layer holds gradients of its widest part
    gradients = tokens * e * (3 * model.size.intermediate_size + 2 * D)
    embeddings = 2 * tokens * e * D + 8 * tokens * D  # spliced input and output, the last norm's float32
    kept = model.size.num_layers * (e * D if load.gradient_checkpointing else layer) * tokens
    again = layer * tokens if load.gradient_checkpointing else 0
    projector = load.micro_batch * model.vision_patches * e * (model.vision_hidden_size + 4 * D)
    return {
        "activations": kept + embeddings + projector,
        "layer in the backward pass": again + gradients,
    }


def _head(model: ModelShapes, load: StudentLoad) -> dict[str, int]:
    positions = load.micro_batch * load.supervised
    chunk = min(load.head_chunk_mib * MIB, 4 * model.size.vocab_size * positions)
    gradients = 4 * model.size.vocab_size * model.size.hidden_size + 4 * positions * model.size.hidden_size
    return {"head and logits": gradients + HEAD_COPIES * chunk}


def _attention(model: ModelShapes, load: StudentLoad) -> dict[str, int]:
    if not load.queries:
        return {}
    heads, e = model.size.num_heads, ELEMENT[load.dtype]
    whole = 4 * load.micro_batch * heads * load.queries * load.length
    rows = ATTENTION_COPIES * min(load.attention_chunk_mib * MIB, whole)
    kept = load.micro_batch * load.queries * model.size.vision_tokens
    # the teacher's rows as decoded, adapted, the student's own, and the difference
    targets = 4 * kept * (load.teacher_heads + 3 * heads)
    keys = 3 * e * load.micro_batch * load.length * model.size.hidden_size
    return {"attention loss": rows + targets + keys}
