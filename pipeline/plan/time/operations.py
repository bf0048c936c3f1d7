"""Floating-point operations of a sample, by shape: forward pass, training step, the teacher's stem."""

from alignkd.pipeline.plan.memory.shapes import ModelShapes


def forward_flops(model: ModelShapes, *, tokens: float, images: float, supervised: float) -> float:
    """Operations of one sample's forward pass.

    Two per parameter and token. Attention takes 2 L^2 D per layer: two products of each pair, half of the pairs are
    masked. The head runs at supervised positions only, the tower over every image.
    """
    D, V = model.size.hidden_size, model.size.vocab_size
    layers = model.size.parameters["language_model"] - 2 * V * D
    decoder = 2 * layers * tokens + 2 * tokens**2 * D * model.size.num_layers
    per_layer = 4 * model.vision_hidden_size**2 + 2 * model.vision_hidden_size * model.vision_intermediate_size
    patches = model.vision_patches + 1
    tower = model.vision_layers * (2 * per_layer * patches + 4 * patches**2 * model.vision_hidden_size)
    projector = 2 * model.vision_patches * (model.vision_hidden_size + D) * D
    return decoder + images * (tower + projector) + 2 * V * D * supervised


def training_flops(
    model: ModelShapes, *, tokens: float, images: float, supervised: float, gradient_checkpointing: bool
) -> float:
    """Operations of one sample's training step: a backward pass takes twice a forward pass; the tower has none."""
    text = forward_flops(model, tokens=tokens, images=0, supervised=supervised)
    once = forward_flops(model, tokens=0, images=images, supervised=0)
    return text * (4 if gradient_checkpointing else 3) + once


def stem_flops(teacher: ModelShapes, *, tokens: float, images: float) -> float:
    """Operations that the stem adds to a sample's training step: queries and keys of all tokens, and the projector."""
    D, size = teacher.size.hidden_size, teacher.size
    keys = size.num_key_value_heads * D // size.num_heads
    projector = 2 * teacher.vision_patches * (teacher.vision_hidden_size + D) * D
    return 2 * D * (D + keys) * tokens + images * projector
