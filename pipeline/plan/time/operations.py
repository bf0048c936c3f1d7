"""Floating-point operations of a sample, by shape: forward pass, training step, the teacher's stem."""

from alignkd.pipeline.plan.memory.shapes import ModelShapes


def forward_flops(
    model: ModelShapes, *, tokens: float, images: float, supervised: float, vision: float | None = None
) -> float:
    """Operations of one sample's forward pass.

    Two per parameter and token, for a mixture of experts as if all were used. Attention takes 2 L^2 D_q per layer: two
    products of each pair, half of the pairs are masked. The head runs at supervised positions only. The tower runs over
    every image, and each patch of an image attends to all of it: tiles and windows take less.

    Args:
        vision: vision tokens of the images; None: every image is `model.image`.
    """
    D, V = model.size.hidden_size, model.size.vocab_size
    layers = model.size.parameters["language_model"] - model.embedding_rows * D
    decoder = 2 * layers * tokens + 2 * tokens**2 * model.query_width * model.size.num_layers
    width = model.size.tower.hidden_size
    per_layer = 4 * width**2 + 2 * width * model.size.tower.intermediate_size
    of_image = _patches(model, images, vision)
    patches = of_image + 1
    tower = model.size.tower.num_layers * (2 * per_layer * patches + 4 * patches**2 * width)
    projector = 2 * of_image * (width + D) * D
    return decoder + images * (tower + projector) + 2 * V * D * supervised


def training_flops(
    model: ModelShapes,
    *,
    tokens: float,
    images: float,
    supervised: float,
    gradient_checkpointing: bool,
    vision: float | None = None,
    weight_gradients: float = 1.0,
) -> float:
    """Operations of one sample's training step; the tower has no backward pass.

    A backward pass takes a forward pass for the gradients of activations, and one for those of weights.

    Args:
        weight_gradients: share of the language model's weights that get a gradient.
    """
    text = forward_flops(model, tokens=tokens, images=0, supervised=supervised)
    once = forward_flops(model, tokens=0, images=images, supervised=0, vision=vision)
    return text * (2 + weight_gradients + gradient_checkpointing) + once


def stem_flops(teacher: ModelShapes, *, depth: int, tokens: float, images: float, vision: float | None = None) -> float:
    """Operations that the stem adds to a sample's training step.

    The whole layers over all tokens, as in `forward_flops`; queries and keys of the last layer; the projector.

    Args:
        depth: see `Stem.depth`.
    """
    D = teacher.size.hidden_size
    whole = 2 * tokens * sum(map(sum, teacher.size.layer_tensors[: depth - 1]))
    pairs = 2 * tokens**2 * teacher.query_width * (depth - 1)
    projector = 2 * _patches(teacher, images, vision) * (teacher.size.tower.hidden_size + D) * D
    return whole + pairs + 2 * D * (teacher.query_width + teacher.key_width) * tokens + images * projector


def _patches(model: ModelShapes, images: float, vision: float | None) -> float:
    """Patches of an average image."""
    if vision is None or not images:
        return model.image.patches
    return model.patches_of(vision / images)
