"""Generation with a KV cache against one full forward pass per token, and one over the finished text."""

from pathlib import Path

import pytest
import torch
from continued import followed_by, teacher_forced_logprob

from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.families.generation import generate, generate_greedy, stream_greedy
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example


@pytest.fixture(scope="module")
def model(golden: Path) -> MobileVLM:
    return load_model(golden / "teacher", vision_config=golden / "clip")


@pytest.fixture(scope="module")
def prompts(golden: Path, golden_images: Path) -> list[Example]:
    """The first questions of the golden samples: several lengths, with and without an image."""
    builder = load_preparation(golden / "teacher", template="v1", vision_config=golden / "clip")
    return [
        builder.build_question(sample.turns[:1], read_images(golden_images, sample.images))
        for sample in load_samples(golden / "v1.json")
    ]


@torch.no_grad()
def without_cache(model: MobileVLM, prompt: Example, num_tokens: int) -> list[int]:
    """The twin: the whole sequence again for every token."""
    answer: list[int] = []
    for _ in range(num_tokens):
        batch = collate_sequences([followed_by(prompt, answer)])
        hidden = model.hidden_states(batch, model.encode_images(batch.images) if batch.images else None)
        answer.append(int(model.lm_head(hidden[0, -1]).argmax()))
    return answer


def test_cached_equals_uncached_for_mixed_prompts(model: MobileVLM, prompts: list[Example]) -> None:
    assert len({prompt.positions.length for prompt in prompts}) > 2
    got = generate_greedy(model, prompts, max_new_tokens=6, stop_ids=())
    assert got == [without_cache(model, prompt, 6) for prompt in prompts]
    assert got[0] == list(stream_greedy(model, prompts[0], max_new_tokens=6, stop_ids=()))


def test_stops_at_the_end_token(model: MobileVLM, prompts: list[Example]) -> None:
    (free,) = generate_greedy(model, prompts[:1], max_new_tokens=8, stop_ids=())
    (stopped,) = generate_greedy(model, prompts[:1], max_new_tokens=8, stop_ids={free[3], -1})
    assert stopped == free[: free.index(free[3])]


def test_a_batch_of_answers_equals_each_alone(model: MobileVLM, prompts: list[Example]) -> None:
    """Of other limits and ends; the sums of log-probabilities are those of one pass over prompt and answer."""
    (free,) = generate(model, prompts[:1], limits=[3], stop_ids=(), num_tokens=200)
    stop = free.ids[2]
    limits = [5, *(1 + number % 4 for number in range(len(prompts) - 1))]
    together = generate(model, prompts, limits=limits, stop_ids={stop}, num_tokens=200)
    for prompt, limit, found in zip(prompts, limits, together, strict=True):
        (alone,) = generate(model, [prompt], limits=[limit], stop_ids={stop}, num_tokens=200)
        assert (found.ids, found.finished) == (alone.ids, alone.finished)
        ids = [*found.ids, *([stop] if found.finished else [])]
        assert found.num_tokens == len(ids) <= limit and (found.finished or len(ids) == limit)
        forced = teacher_forced_logprob(model, prompt, ids, num_tokens=200)
        assert found.logprob == pytest.approx(forced, abs=1e-4) == pytest.approx(alone.logprob, abs=1e-4)
    assert {found.finished for found in together} == {True, False}
    assert all(max(found.ids, default=0) < 200 for found in together)


def test_a_check_before_every_token_may_end_it(model: MobileVLM, prompts: list[Example]) -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts[:2], limits=[9, 9], stop_ids=(), check=check)
    assert len(calls) == 3
