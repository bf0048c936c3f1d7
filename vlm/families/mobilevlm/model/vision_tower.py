"""The CLIP vision tower up to the selected hidden state; later layers are loaded and saved but not run."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel


class _TowerWrapper(nn.Module):
    """Wrapper for the parameter names of the official checkpoints: `vision_tower.vision_model.*`."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config)


class VisionTower(nn.Module):
    """Pixel values [B, 3, H, W] -> patch features [B, patches, D_vision] of one hidden state, class token dropped.

    Args:
        config: the tower's config.
        select_layer: index into the tower's hidden states (embeddings first); -2 in MobileVLM V2.
    """

    def __init__(self, config: CLIPVisionConfig, select_layer: int) -> None:
        super().__init__()
        self.vision_tower = _TowerWrapper(config)
        self.num_layers_run = select_layer if select_layer >= 0 else config.num_hidden_layers + 1 + select_layer
        self.frozen = False

    def forward(self, pixel_values_BCHW: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            model = self.vision_tower.vision_model
            dtype = model.embeddings.patch_embedding.weight.dtype
            hidden: Tensor = model.pre_layrnorm(model.embeddings(pixel_values_BCHW.to(dtype)))
            for layer in model.encoder.layers[: self.num_layers_run]:
                hidden = layer(hidden, None)
            return hidden[:, 1:]

    def freeze(self) -> None:
        """Exclude the tower from training (both phases of Align-KD)."""
        self.frozen = True
        self.requires_grad_(False)
