"""Host memory of training, all processes of one machine together.

The offloaded part is what DeepSpeed 0.19.8 keeps on the host under ZeRO-2, buffer by buffer; a test compares it with
the buffers of a real engine. docs/plan.md explains every part.
"""

from collections.abc import Mapping

from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.student_train.data.handoff.stream import IN_USE, PREFETCHED
from alignkd.student_train.engine.pinned_memory import pinned_bytes
from alignkd.student_train.run.checkpoint_parts import PART_BYTES
from alignkd.vlm.families.sizes import ModelSize

MIB = 1 << 20
# Python, torch and CUDA's libraries and context of one training process: assumed; 0.4 GiB of it is measured on a CPU.
PROCESS_BYTES = 2 << 30
# Private memory of a data worker: measured, see docs/plan.md.
WORKER_BYTES = 192 * MIB
_ALWAYS = ("processes", "data workers", "batches", "a file of a checkpoint", "the student while it is loaded")


def adapter_parameters(model: ModelShapes, load: StudentLoad) -> int:
    """Parameters of both adapters: heads to heads, and hidden size to hidden size."""
    return (load.teacher_heads + 1) * model.size.num_heads + (load.teacher_hidden + 1) * model.size.hidden_size


def group_sizes(model: ModelShapes, load: StudentLoad) -> list[int]:
    """Trained parameters of each of AdamW's groups: projector, adapters, decoder."""
    counts = model.size.parameters
    return [counts["projector"], adapter_parameters(model, load), counts["language_model"]]


def offloaded_bytes(model: ModelShapes, load: StudentLoad) -> dict[str, int]:
    """Part -> bytes that offloading keeps on the host; pinned buffers have the size that torch's allocator takes."""
    e, groups = load.element, [-(-count // load.devices) for count in group_sizes(model, load)]

    def of_groups(bytes_each: int) -> int:
        return load.devices * sum(pinned_bytes(bytes_each * count) for count in groups)

    parts = {
        "master weights": of_groups(4),
        "moments of AdamW": load.devices * 8 * sum(groups),  # never pinned
        "gradients in float32": of_groups(4),
        "weights on their way to the device": of_groups(e),
        "a gradient on its way to the host": load.devices * pinned_bytes(e * _largest(model.size)),
    }
    if load.accumulates and not load.sums_in_float32:
        tensors = [*_decoder_tensors(model.size), *group_sizes(model, load)[:2]]
        parts["sums of gradients"] = sum(pinned_bytes(e * count) for count in tensors)
    return parts


def offloaded_of(parts: Mapping[str, int]) -> int:
    """Bytes of the parts of `host_bytes` that exist because of `offload_optimizer`."""
    return sum(size for name, size in parts.items() if name not in _ALWAYS)


def host_bytes(model: ModelShapes, load: StudentLoad) -> tuple[dict[str, int], int]:
    """Part -> bytes of host memory, and the largest number of bytes at one time."""
    trained, frozen = sum(group_sizes(model, load)), model.size.parameters["vision_tower"]
    state = offloaded_bytes(model, load) if load.offload else {}
    written = load.devices * min(4 * trained, max(PART_BYTES, 4 * _largest(model.size)))
    loaded = load.devices * load.element * (trained + frozen)
    waiting = (PREFETCHED * load.data_workers + IN_USE) * load.batch_bytes
    workers = load.devices * load.data_workers * WORKER_BYTES
    standing = load.devices * (PROCESS_BYTES + waiting) + workers
    peak = standing + max(loaded, sum(state.values()) + written)
    always = (load.devices * PROCESS_BYTES, workers, load.devices * waiting, written, loaded)
    return state | dict(zip(_ALWAYS, always, strict=True)), peak


def _largest(size: ModelSize) -> int:
    """Elements of the largest trained tensor: the embeddings or the head."""
    return size.vocab_size * size.hidden_size


def _decoder_tensors(size: ModelSize) -> list[int]:
    """Elements of every tensor of the language model."""
    D, queries = size.hidden_size, size.num_heads * size.head_dim
    keys = size.num_key_value_heads * size.head_dim
    layer = [D * queries, D * queries, D * keys, D * keys, *[D * size.intermediate_size] * 3, D, D]
    return [*[_largest(size)] * (1 if size.tied_head else 2), D, *layer * size.num_layers]
