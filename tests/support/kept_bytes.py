"""What torch keeps of a decoder's forward pass for the backward one."""

from typing import Any

import torch
from torch import Tensor


def saved_bytes(decoder: Any, embeddings: Tensor) -> int:
    """Bytes without parameters; shared memory counts once."""
    storages: dict[int, int] = {}
    kept = []
    parameters = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # alive, so that no other tensor gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder(inputs_embeds=embeddings, use_cache=False)
    return sum(storages.values())
