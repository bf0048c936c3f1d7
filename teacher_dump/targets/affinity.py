"""The target `vision_text_affinity`: cosines of the teacher's last hidden states at text queries and vision tokens.

Text queries are the text positions after the last vision token of the last image: those that see every image. Text
before an image does not depend on it, and padding is not a position of a sample.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.targets.device_codecs import encode
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies
from alignkd.vlm.hardware.transfers import to_device
from alignkd.vlm.relations import cosines


def affinities(
    codec: str, samples: Sequence[Prepared], hidden_BLD: Tensor, copies: HostCopies
) -> dict[int, HostArrays]:
    """Encoded cosines [Q, P] of each sample that has images, by its row in the batch.

    Args:
        hidden_BLD: the last hidden states of the batch.
        copies: starts the copies to the host.
    """
    found = {}
    for row, positions in enumerate(sample.example.positions for sample in samples):
        if positions.num_images:
            queries_QD, vision_PD = (
                hidden_BLD[row].index_select(0, _index(places, hidden_BLD.device))
                for places in (positions.tqv_query_positions, positions.vision_positions)
            )
            found[row] = copies.start(encode(codec, cosines(queries_QD, vision_PD)))
    return found


def _index(places: NDArray[np.int32], device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(places.astype(np.int64)), device)
