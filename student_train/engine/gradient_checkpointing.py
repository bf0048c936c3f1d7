"""Gradient checkpointing: the decoder's activations are computed again in the backward pass, which saves memory."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM


def checkpoint_decoder_layers(model: MobileVLM) -> None:
    """Keep only the input of each decoder layer for the backward pass.

    The vision tower is frozen and keeps nothing. The first-layer attention of eq. 1 and the head bound their memory
    themselves, with and without this.
    """
    for layer in model.model.layers:
        # preserve_rng_state: no random numbers are drawn, so there is no state to restore
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
