"""Trained parameters of a student with its distillation adapters, and bytes of its weights."""

from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.student_train.engine.optimizers.blocks import BLOCK
from alignkd.student_train.engine.parameter_groups import SMALLEST_IN_8_BITS
from alignkd.student_train.trained.counts import TrainedCounts, trained_counts
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.vlm.families.sizes import ModelSize
from alignkd.vlm.weights.bitsandbytes import NF4_BLOCK

# float32 master weight and two moments of a trained parameter in a checkpoint
CHECKPOINT_BYTES = 12
# two moments of a value in float32, and in 8 bits with their share of the scales
MOMENT_BYTES, MOMENT_BYTES_IN_8_BITS = 8, 2 + 2 * 4 / BLOCK
# bytes of a weight in nf4: four bits, and its share of a float32 scale
_NF4_BYTES = 1 / 2 + 4 / NF4_BLOCK


def adapter_parameters(model: ModelShapes, load: StudentLoad) -> dict[str, int]:
    """Parameters of the adapters: heads to heads, hidden size to hidden size, and back."""
    return {
        "attn_adapter": (load.teacher_heads + 1) * model.size.num_heads,
        "proj_adapter": (load.teacher_hidden + 1) * model.size.hidden_size,
        # only runs that need it have it
        **({"state_adapter": load.teacher_hidden * model.size.hidden_size} if load.state_adapter else {}),
    }


def trained_adapters(model: ModelShapes, load: StudentLoad) -> int:
    """Parameters of the adapters that are trained."""
    sizes = adapter_parameters(model, load)
    return sum(size for name, size in sizes.items() if getattr(load, name))


def counts_of(model: ModelShapes, load: StudentLoad) -> TrainedCounts:
    """What is trained of the student itself."""
    return trained_counts(load.trained, model.size)


def group_sizes(model: ModelShapes, load: StudentLoad) -> list[int]:
    """Trained parameters of each of AdamW's groups: projector, adapters, decoder."""
    counts = counts_of(model, load)
    return [counts.projector, trained_adapters(model, load), counts.decoder]


def trained_parameters(model: ModelShapes, load: StudentLoad) -> int:
    """Number of trained parameters, adapters included."""
    return sum(group_sizes(model, load))


def moment_bytes(model: ModelShapes, load: StudentLoad) -> int:
    """Bytes of both moments of all trained parameters.

    With `adamw_8bit`, embeddings and small tensors keep float32; a projector is taken for one tensor.
    """
    trained = trained_parameters(model, load)
    if load.optimizer != "adamw_8bit":
        return MOMENT_BYTES * trained
    tensors = [*decoder_tensors(model, load), counts_of(model, load).projector]
    tensors += [size for name, size in adapter_parameters(model, load).items() if getattr(load, name)]
    in_float32 = sum(size for size in tensors if size < SMALLEST_IN_8_BITS)
    if trains_head(load.trained):
        in_float32 += model.size.vocab_size * model.size.hidden_size
    return round(MOMENT_BYTES * in_float32 + MOMENT_BYTES_IN_8_BITS * (trained - in_float32))


def trains_head(config: TrainedConfig) -> bool:
    """Whether embeddings and head are trained."""
    return config.choice in ("all", "decoder")


def largest_trained(model: ModelShapes, load: StudentLoad) -> int:
    """Elements of the largest trained tensor; of a projector all its parameters are taken, where nothing is larger."""
    if trains_head(load.trained):
        return model.size.vocab_size * model.size.hidden_size
    counts, adapters = counts_of(model, load), trained_adapters(model, load)
    return max([counts.projector, adapters, *(counts.tensors or ())])


def decoder_tensors(model: ModelShapes, load: StudentLoad) -> list[int]:
    """Elements of every trained tensor of the language model."""
    counts = counts_of(model, load)
    if counts.tensors is not None:
        return [*counts.tensors]
    return _all_tensors(model.size) if trains_head(load.trained) else []


def student_weight_bytes(model: ModelShapes, load: StudentLoad) -> int:
    """Bytes of the student's weights on a device, LoRA and adapters included."""
    size, e, counts = model.size, load.element, counts_of(model, load)
    added = e * (counts.total - size.parameters["total"] + sum(adapter_parameters(model, load).values()))
    if load.trained.quantization == "none":
        return e * size.parameters["total"] + added
    # weight_bytes has 16 bits for what is not quantised
    quantised = (2 * size.parameters["total"] - size.weight_bytes["nf4"]) / (2 - _NF4_BYTES)
    kept = size.parameters["total"] - round(quantised)
    return size.weight_bytes[load.trained.quantization] + (e - 2) * kept + added


def weight_gradient_share(model: ModelShapes, config: TrainedConfig) -> float:
    """Share of the language model's weights that get a gradient."""
    return min(1.0, trained_counts(config, model.size).decoder / model.size.parameters["language_model"])


def _all_tensors(size: ModelSize) -> list[int]:
    D, queries = size.hidden_size, size.num_heads * size.head_dim
    keys = size.num_key_value_heads * size.head_dim
    layer = [D * queries, D * queries, D * keys, D * keys, *[D * size.intermediate_size] * 3, D, D]
    return [*[size.vocab_size * D] * (1 if size.tied_head else 2), D, *layer * size.num_layers]
