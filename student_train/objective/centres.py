"""The teacher's class means, of which the loss `nd` takes the directions: a file that `alignkd shards centres` writes.

A class is a next token. Shapes: M tokens with a centre, V vocabulary, Dt hidden size of the teacher.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from alignkd.student_train.errors import TrainError, unreadable
from alignkd.vlm.finite import check_finite
from alignkd.vlm.weights.tensor_file import open_tensors

# tensors of the file: int64 [M] rising, float32 [M, Dt], int64 [M]
TOKENS: Final = "tokens"
CENTRES: Final = "centres"
COUNTS: Final = "counts"
# in its metadata: the fingerprint of the teacher's weights
TEACHER: Final = "class_means_of"


class Centres(nn.Module):
    """The centres as buffers: moved with the student, but neither trained nor kept in checkpoints."""

    rows_V: Tensor
    centres_MD: Tensor

    def __init__(self, tokens_M: Tensor, centres_MD: Tensor, *, vocab_size: int) -> None:
        super().__init__()
        rows_V = torch.full((vocab_size,), -1)
        rows_V[tokens_M] = torch.arange(len(tokens_M))
        self.register_buffer("rows_V", rows_V, persistent=False)
        self.register_buffer("centres_MD", centres_MD, persistent=False)

    def of_labels(self, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """The centre of each label [N, Dt], and bool [N], which of them have one; zeros for others."""
        rows_N = self.rows_V[labels_N]
        has_centre_N = rows_N >= 0
        return self.centres_MD[rows_N.clamp(min=0)] * has_centre_N[:, None], has_centre_N

    @classmethod
    def read(cls, path: Path, *, fingerprint: Mapping[str, str], store: str, sizes: tuple[int, int]) -> Self:
        """The centres in a file.

        Args:
            fingerprint: of the store that is trained from.
            store: its path, for messages.
            sizes: vocabulary and hidden size of its teacher.

        Raises:
            TrainError: the file cannot be read, or is of another teacher.
            InputError: a value is not finite.
        """
        try:
            with open_tensors(path) as file:
                tokens_M, centres_MD = file.get_tensor(TOKENS), file.get_tensor(CENTRES)
                teacher = (file.metadata() or {}).get(TEACHER, "not recorded")
        except OSError as error:
            raise unreadable(f"train.centres {path}", error) from error
        except SafetensorError as error:
            raise TrainError(
                f"train.centres {path}: cannot be read ({error}); write it by `alignkd shards centres STORE`"
            ) from error
        expected = fingerprint.get("weights", "not recorded")
        if teacher != expected:
            raise TrainError(
                f"train.centres {path}: of a teacher with weights {teacher[:16]}, store {store} is of one with "
                f"{expected[:16]}; write it from a store of that teacher by `alignkd shards centres STORE`"
            )
        vocab_size, hidden_size = sizes
        shapes = (tuple(tokens_M.shape), tuple(centres_MD.shape))
        fits = shapes == ((len(tokens_M),), (len(tokens_M), hidden_size))
        if not fits or not len(tokens_M) or not 0 <= int(tokens_M.min()) <= int(tokens_M.max()) < vocab_size:
            raise TrainError(
                f"train.centres {path}: {TOKENS} and {CENTRES} have shapes {shapes}, expected M tokens below "
                f"{vocab_size} and M rows of {hidden_size}; write it again by `alignkd shards centres STORE`"
            )
        check_finite(centres_MD, CENTRES, path)
        return cls(tokens_M.long(), centres_MD.float(), vocab_size=vocab_size)
