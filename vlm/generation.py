"""Greedy generation with a KV cache, for batches of equal prompt length."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm.batch import collate_sequences
from vlm.examples import Example
from vlm.model import MobileVLM


@torch.no_grad()
def generate_greedy(
    model: MobileVLM, prompts: Sequence[Example], *, max_new_tokens: int, eos_token_id: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, without the final `eos_token_id`.

    Prompts may differ in length: those of equal length share a batch, so nothing is padded.

    Returns:
        One list of at most `max_new_tokens` token ids per prompt, in the order of `prompts`.
    """
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(prompt.positions.length, []).append(number)
    answers: list[list[int]] = [[] for _ in prompts]
    for numbers in by_length.values():
        tokens_BT = _generate_equal(model, [prompts[number] for number in numbers], max_new_tokens, eos_token_id)
        for number, row in zip(numbers, tokens_BT.tolist(), strict=True):
            answers[number] = row[: row.index(eos_token_id)] if eos_token_id in row else row
    return answers


def _generate_equal(model: MobileVLM, prompts: Sequence[Example], max_new_tokens: int, eos_token_id: int) -> Tensor:
    batch = collate_sequences(prompts).to(model.device)
    vision = None if batch.pixel_values_ICHW is None else model.encode_images(batch.pixel_values_ICHW)
    inputs_embeds = model.embed(batch, vision)
    cache = DynamicCache(config=model.config.llama)
    steps: list[Tensor] = []
    finished_B = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    for _ in range(max_new_tokens):
        hidden_BLD = model.model(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True).last_hidden_state
        next_B = model.lm_head(hidden_BLD[:, -1]).argmax(dim=-1)
        next_B = next_B.masked_fill(finished_B, eos_token_id)
        steps.append(next_B)
        finished_B |= next_B == eos_token_id
        if bool(finished_B.all()):
            break
        inputs_embeds = model.model.embed_tokens(next_B[:, None])
    return torch.stack(steps, dim=1)
