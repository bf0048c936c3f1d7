"""Memory for time: the decoder's activations are computed again in the backward pass instead of being kept."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from alignkd.vlm.model.mobilevlm import MobileVLM


def checkpoint_decoder_layers(model: MobileVLM) -> None:
    """Keep only the input of each decoder layer for the backward pass.

    The vision tower is frozen and keeps nothing; the first-layer attention of eq. 1 and the head hold down their own
    memory, with and without this.
    """
    for layer in model.model.layers:
        # preserve_rng_state: nothing draws random numbers, so there is no state to bring back
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
