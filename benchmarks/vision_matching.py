"""Cost of `losses.vision_matching: hungarian` per image, beside that of the loss `vsd` on the matched vision tokens.

    python benchmarks/vision_matching.py [--tiny]

Random states of MobileVLM V2's sizes (hidden sizes 2048 and 4096, 32,000 tokens), on one core. `search` is the host's
work, for which the device waits; `distances` and `vsd` are the device's.
"""

from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import click
import torch

from alignkd.student_train.losses.fused_head import WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.logit_loss import teacher_logits
from alignkd.student_train.losses.vision.matching import cheapest_pairs, state_distances
from alignkd.student_train.losses.vision.vsd import vsd_loss
from alignkd.vlm.families.family import Head

# vision tokens of an image: student, teacher
PAIRS = ((144, 144), (576, 144), (144, 576))
CHUNK_BYTES = 64 << 20
T = TypeVar("T")


@click.command(help=__doc__)
@click.option("--tiny", is_flag=True, help="Small sizes, to test the script.")
def main(tiny: bool) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    widths, vocabulary = ((32, 48), 200) if tiny else ((2048, 4096), 32_000)
    heads = [Head(weight_VD=torch.randn(vocabulary, width) * width**-0.5) for width in widths]
    click.echo("student  teacher  distances s  search ms  vsd s  (distances + search) / vsd")
    for student, teacher in ((12, 12), (20, 12)) if tiny else PAIRS:
        own, theirs = torch.randn(student, widths[0]), torch.randn(teacher, widths[1])
        distances, of_distances = timed(
            lambda own=own, theirs=theirs: state_distances(own, heads[0], theirs, heads[1], chunk_bytes=CHUNK_BYTES)
        )
        pairs, of_search = timed(lambda distances=distances: cheapest_pairs(distances.numpy()))
        states = own[pairs[0]].requires_grad_()
        _, of_loss = timed(
            lambda states=states, matched=theirs[pairs[1]]: fused_head_losses(
                states,
                heads[0],
                [
                    WeightedTerm(
                        term=lambda q, chunk: vsd_loss(q, teacher_logits(matched[chunk], heads[1])).parts, weight=1
                    )
                ],
                chunk_bytes=CHUNK_BYTES,
            )[0].total.backward()
        )
        ratio = (of_distances + of_search) / of_loss
        click.echo(
            f"{student:>7}  {teacher:>7}  {of_distances:>11.3f}  {1000 * of_search:>9.1f}  {of_loss:>5.2f}  {ratio:.2f}"
        )


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The result, and the fewest seconds of three calls."""
    best = float("inf")
    for _ in range(3):
        start = perf_counter()
        found = function()
        best = min(best, perf_counter() - start)
    return found, best


if __name__ == "__main__":
    main()
