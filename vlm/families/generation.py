"""Greedy generation with a KV cache: streamed for one prompt, in batches of equal length for many."""

import itertools
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.inputs.examples import Example


def generate_greedy(
    model: VisionLanguageModel, prompts: Sequence[Example], *, max_new_tokens: int, stop_ids: Collection[int]
) -> list[list[int]]:
    """The most likely continuation of each prompt, without the token of `stop_ids` that ends it.

    Prompts may differ in length: those of equal length share a batch, so nothing is padded.

    Raises:
        InputError: logits that are not finite, so that no token is the most probable.

    Returns:
        One list of at most `max_new_tokens` token ids per prompt, in the order of `prompts`.
    """
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(prompt.positions.length, []).append(number)
    answers: list[list[int]] = [[] for _ in prompts]
    for numbers in by_length.values():
        rows = _generate_equal(model, [prompts[number] for number in numbers], max_new_tokens, stop_ids)
        for number, row in zip(numbers, rows, strict=True):
            answers[number] = list(itertools.takewhile(lambda token: token not in stop_ids, row))
    return answers


def stream_greedy(
    model: VisionLanguageModel, prompt: Example, *, max_new_tokens: int, stop_ids: Collection[int]
) -> Iterator[int]:
    """The tokens of `generate_greedy` for one prompt, each as soon as it is computed."""
    for next_B in itertools.islice(model.next_tokens([prompt]), max_new_tokens):
        token = int(next_B.item())
        if token in stop_ids:
            return
        yield token


def _generate_equal(
    model: VisionLanguageModel, prompts: Sequence[Example], max_new_tokens: int, stop_ids: Collection[int]
) -> list[list[int]]:
    """Rows of at most `max_new_tokens` ids; ids after a row's first end token are meaningless."""
    steps: list[Tensor] = []
    finished_B = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    stop_E = torch.tensor(list(stop_ids), dtype=torch.int64, device=model.device)
    for next_B in itertools.islice(model.next_tokens(prompts), max_new_tokens):
        steps.append(next_B)
        finished_B |= torch.isin(next_B, stop_E)
        if bool(finished_B.all()):
            break
    return torch.stack(steps, dim=1).tolist() if steps else [[] for _ in prompts]
