"""A batch is decoded until its longest answer has ended, and no further."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from alignkd.vlm.families.generation import generate

END, OTHER, VOCAB = 0, 3, 5


class Counting(SimpleNamespace):
    """A model whose answers have given lengths; `computed` counts rows of logits."""

    device = torch.device("cpu")

    def decoding(self, prompts: list[int], vision: object = None) -> Iterator[Tensor]:
        for position in range(1000):
            ends = torch.tensor([position == length - 1 for length in prompts])
            tokens_B = torch.where(ends, END, OTHER)
            self.computed += len(prompts)
            yield torch.nn.functional.one_hot(tokens_B, VOCAB) * 10.0


@pytest.mark.parametrize(
    ("lengths", "limit", "longest"), [([2, 7, 3], 20, 7), ([1, 1], 20, 1), ([2, 30], 9, 9), ([4], 4, 4)]
)
def test_rows_of_a_batch_are_computed_up_to_its_longest_answer(lengths: list[int], limit: int, longest: int) -> None:
    """Lengths count the end token; the limit cuts an answer without one."""
    model = Counting(computed=0)
    found = generate(model, lengths, limits=[limit] * len(lengths), stop_ids=[END])  # type: ignore[arg-type]
    assert model.computed == len(lengths) * longest
    assert [one.num_tokens for one in found] == [min(length, limit) for length in lengths]
    assert [one.finished for one in found] == [length <= limit for length in lengths]
