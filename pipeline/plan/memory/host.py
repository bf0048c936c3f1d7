"""Host memory of training, all processes of one machine together.

The offloaded part is what DeepSpeed 0.19.8 keeps on the host under ZeRO-2, buffer by buffer; a test compares it with
the buffers of a real engine. docs/plan.md explains every part.
"""

from collections.abc import Mapping

from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.trained import (
    adapter_parameters,
    counts_of,
    decoder_tensors,
    group_sizes,
    largest_trained,
    trained_parameters,
)
from alignkd.student_train.checkpoints.parts import PART_BYTES
from alignkd.student_train.data.handoff.stream import IN_USE, PREFETCHED
from alignkd.student_train.data.samples.kept_samples import KEPT_BYTES
from alignkd.student_train.engine.pinned_memory import pinned_bytes

MIB = 1 << 20
# Python, torch and CUDA's libraries and context of one training process: assumed; 0.4 GiB of it is measured on a CPU.
PROCESS_BYTES = 2 << 30
# Private memory of a data worker: measured, see docs/plan.md.
WORKER_BYTES = 192 * MIB
_ALWAYS = (
    "processes",
    "data workers",
    "batches",
    "samples kept in memory",
    "a file of a checkpoint",
    "the student while it is loaded",
)


def offloaded_bytes(model: ModelShapes, load: StudentLoad) -> dict[str, int]:
    """Part -> bytes that offloading keeps on the host; pinned buffers have the size that torch's allocator takes."""
    e, groups = load.element, [-(-count // load.devices) for count in group_sizes(model, load) if count]

    def of_groups(bytes_each: int) -> int:
        return load.devices * sum(pinned_bytes(bytes_each * count) for count in groups)

    parts = {
        "master weights": of_groups(4),
        "moments of AdamW": load.devices * 8 * sum(groups),  # never pinned
        "gradients in float32": of_groups(4),
        "weights on their way to the device": of_groups(e),
        "a gradient on its way to the host": load.devices * pinned_bytes(e * largest_trained(model, load)),
    }
    if load.accumulates and not load.sums_in_float32:
        tensors = [*decoder_tensors(model, load), *filter(None, group_sizes(model, load)[:2])]
        parts["sums of gradients"] = sum(pinned_bytes(e * count) for count in tensors)
    return parts


def offloaded_of(parts: Mapping[str, int]) -> int:
    """Bytes of the parts of `host_bytes` that exist because of `adamw_offload`."""
    return sum(size for name, size in parts.items() if name not in _ALWAYS)


def host_bytes(model: ModelShapes, load: StudentLoad) -> tuple[dict[str, int], int]:
    """Part -> bytes of host memory, and the largest number of bytes at one time."""
    trained, weights = trained_parameters(model, load), load.element * _parameters(model, load)
    state = offloaded_bytes(model, load) if load.offload else {}
    written = load.devices * min(4 * trained, max(PART_BYTES, 4 * largest_trained(model, load)))
    loaded = load.devices * weights
    waiting = (PREFETCHED * load.data_workers + IN_USE) * load.batch_bytes
    workers = load.devices * load.data_workers * WORKER_BYTES
    kept = load.devices * _kept_bytes(load)
    standing = load.devices * (PROCESS_BYTES + waiting) + workers + kept
    # LoRA beside quantised weights is merged into the original ones, which the first process reads again
    exported = weights if load.trained.quantization != "none" else 0
    peak = standing + max(loaded, sum(state.values()) + max(written, exported))
    always = (load.devices * PROCESS_BYTES, workers, load.devices * waiting, kept, written, loaded)
    return state | dict(zip(_ALWAYS, always, strict=True)), peak


def _kept_bytes(load: StudentLoad) -> int:
    """Bytes of the samples that a training process keeps."""
    every = load.num_samples * load.batch_bytes // load.micro_batch
    return every if not load.data_workers and every <= KEPT_BYTES // load.devices else 0


def _parameters(model: ModelShapes, load: StudentLoad) -> int:
    """Parameters of student, LoRA and adapters."""
    return counts_of(model, load).total + sum(adapter_parameters(model, load).values())
