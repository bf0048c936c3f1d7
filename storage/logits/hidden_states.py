"""`hidden`: the teacher's last hidden state per supervised position; the lm_head gives every logit from it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts, ReadRows, Shape, part_column
from alignkd.storage.errors import StoreError
from alignkd.storage.logits.pass_through import decoded, encoded
from alignkd.storage.record.distributions import HiddenStates

COLUMN = "hidden_states"


@dataclass(frozen=True)
class HiddenStatesCodec:
    """States [N, Dt] after the final norm, in a codec of the target `hidden`, with the error of that codec."""

    hidden_size: int
    dtype: str
    value_type = HiddenStates

    def arrays(self) -> list[tuple[str, str, np.dtype[Any], Shape]]:
        parts = get_codec(self.dtype).parts((self.hidden_size,))
        return [(part_column(COLUMN, part), "supervised", dtype, shape) for part, (dtype, shape) in parts.items()]

    def encode(self, logits: HiddenStates) -> Parts:
        """Raises:
        StoreError: another hidden size, or states encoded by another codec.
        RecordError: a value that the codec cannot hold.
        """
        expected = (logits.num_positions, self.hidden_size)
        if logits.states.shape != expected:
            raise StoreError(f"{COLUMN} has shape {logits.states.shape}, the store expects {expected}")
        parts = encoded(self.dtype, COLUMN, logits.states)
        return {part_column(COLUMN, part): values for part, values in parts.items()}

    def decode(self, read: ReadRows) -> HiddenStates:
        parts = {part: read(part_column(COLUMN, part)) for part in get_codec(self.dtype).part_names}
        return HiddenStates.trusted({"states": decoded(self.dtype, parts)})

    def describe(self) -> dict[str, Any]:
        return {**get_codec(self.dtype).describe(), "values": "hidden state after the final norm, before lm_head"}
