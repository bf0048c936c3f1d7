"""Greedy generation with a KV cache against one full forward pass per token."""

from pathlib import Path

import numpy as np
import torch

from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.families.generation import generate_greedy
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import position_map


def without_cache(model: MobileVLM, prompt: Example, num_tokens: int) -> list[int]:
    """The twin: the whole sequence again for every token."""
    ids, answer = prompt.input_ids.tolist(), []
    for _ in range(num_tokens):
        labels = [IGNORE_LABEL] * len(ids)
        positions = position_map(ids, labels, vision_tokens=144)
        example = Example(
            input_ids=np.asarray(ids, np.int32),
            labels=np.asarray(labels, np.int32),
            images=prompt.images,
            positions=positions,
        )
        batch = collate_sequences([example])
        vision = model.encode_images(batch.images) if batch.images else None
        hidden = model.hidden_states(batch, vision)
        answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
        ids.append(answer[-1])
    return answer


@torch.no_grad()
def test_cached_equals_uncached_for_mixed_prompts(golden: Path, golden_images: Path) -> None:
    model = load_model(golden / "teacher", vision_config=golden / "clip")
    builder = load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")
    prompts = []
    for sample in load_samples(golden / "v1.json"):
        prompts.append(builder.build_question(sample.turns[:1], read_images(golden_images, sample.images)))
    got = generate_greedy(model, prompts, max_new_tokens=6, stop_ids=())
    assert got == [without_cache(model, prompt, 6) for prompt in prompts]


@torch.no_grad()
def test_stops_at_the_end_token(golden: Path) -> None:
    model = load_model(golden / "teacher", vision_config=golden / "clip")
    builder = load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")
    (sample,) = [entry for entry in load_samples(golden / "v1.json") if not entry.images]
    prompt = builder.build_question(sample.turns[:1], ())
    (free,) = generate_greedy(model, [prompt], max_new_tokens=8, stop_ids=())
    (stopped,) = generate_greedy(model, [prompt], max_new_tokens=8, stop_ids={free[3], -1})
    assert stopped == free[: free.index(free[3])]
