"""A model behind the interface against the same checkpoint in transformers alone: one sample, eager, no padding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from continued import teacher_forced_logprob
from transformers import AutoModelForImageTextToText

from alignkd.vlm.families.family import Vision, sum_of_zeros
from alignkd.vlm.families.generation import generate, generate_greedy
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences


def tolerance(case: Any) -> float:
    """Qwen3.5's linear attention computes in chunks that depend on the padded length, and amplifies their rounding."""
    return 3e-4 if case.name == "qwen3_5" else 1e-5


def relative(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max().clamp_min(1.0))


def encoded(model: Any, batch: SequenceBatch) -> Vision | None:
    return model.encode_images(batch.images, batch.image_samples_I.tolist()) if batch.images else None


@torch.no_grad()
def test_a_padded_batch_equals_each_sample_alone_in_transformers(every_case: Any) -> None:
    model, batch = every_case.model, every_case.batch
    with model.watched_first_layer() as first:
        hidden_BLD = model.hidden_states(batch, encoded(model, batch))
    for row, (sample, own) in enumerate(zip(every_case.samples, every_case.reference, strict=True)):
        length = len(own.hidden)
        assert relative(hidden_BLD[row, :length], own.hidden) < tolerance(every_case)
        assert relative(model.head(hidden_BLD[row, :length]), own.logits) < tolerance(every_case)
        positions = sample.example.positions
        if not positions.num_images:
            continue
        rows = torch.from_numpy(positions.tqv_query_positions).long()[None]
        columns = torch.from_numpy(positions.vision_positions).long()[None]
        tqv_HQP = first.attention(rows, columns, torch.tensor([row]))[0]
        assert relative(tqv_HQP, own.attention[:, rows[0]][:, :, columns[0]]) < tolerance(every_case)
        assert float(tqv_HQP.sum(-1).max()) > 0.05  # not zeros against zeros


@torch.no_grad()
def test_every_row_of_the_recorded_layer_equals_the_attention_of_transformers(every_case: Any) -> None:
    model = every_case.model
    for sample, own in zip(every_case.samples, every_case.reference, strict=True):
        batch = collate_sequences([sample.example])
        with model.watched_first_layer() as first:
            model.hidden_states(batch, encoded(model, batch))
        everything = torch.arange(batch.input_ids_BL.shape[1])[None]
        assert first.num_samples == 1
        assert relative(first.attention(everything, everything)[0], own.attention) < tolerance(every_case)


@torch.no_grad()
def test_generation_equals_that_of_transformers(case: Any) -> None:
    for sample in case.samples[:3]:
        prompt = sample.example
        (tokens,) = generate_greedy(case.model, [prompt], max_new_tokens=8, stop_ids=())
        own = case.eager.generate(
            **sample.whole, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=-1
        )[0, len(prompt.input_ids) :]
        assert tokens == own.tolist()


@torch.no_grad()
def test_generation_does_not_depend_on_the_batch(every_case: Any) -> None:
    """Prompts of all lengths with none to several images, padded, and two equal ones, against each alone."""
    model, prompts = every_case.model, [sample.example for sample in every_case.samples]
    settings: dict[str, Any] = {"stop_ids": {7}}
    limits = [1 + number % 6 for number in range(len(prompts))]
    together = generate(model, [*prompts, prompts[0]], limits=[*limits, limits[0]], **settings)
    assert together[-1].ids == together[0].ids
    for prompt, limit, found in zip(prompts, limits, together, strict=False):
        (alone,) = generate(model, [prompt], limits=[limit], **settings)
        assert (found.ids, found.finished) == (alone.ids, alone.finished)
        assert found.logprob == pytest.approx(alone.logprob, abs=1e-4)


@torch.no_grad()
def test_only_the_logits_of_the_last_position_are_computed(case: Any) -> None:
    """The head of a large vocabulary over a whole prompt would need more memory than the decoder."""
    lengths = []
    hook = case.model.model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _output: lengths.append(inputs[0].shape[1])
    )
    generate_greedy(case.model, [sample.example for sample in case.samples[:2]], max_new_tokens=3, stop_ids=())
    hook.remove()
    assert lengths == [1, 1, 1]


@torch.no_grad()
def test_log_probabilities_are_those_of_one_pass_over_the_finished_text(case: Any) -> None:
    type_of_answers = int(case.name.startswith("paligemma"))  # its type 0 attends to later text too
    for sample in case.samples[:3]:
        (found,) = generate(case.model, [sample.example], limits=[5], stop_ids=())
        forced = teacher_forced_logprob(case.model, sample.example, found.ids, type_of_new=type_of_answers)
        assert found.logprob == pytest.approx(forced, abs=1e-4)


@torch.no_grad()
def test_a_pass_after_generation_has_its_own_positions(case: Any) -> None:
    """Generation leaves position offsets in the model (`rope_deltas`)."""
    model = case.model
    generate_greedy(model, [case.samples[2].example], max_new_tokens=2, stop_ids=())
    for sample, own in zip(case.samples, case.reference, strict=True):
        batch = collate_sequences([sample.example])
        assert relative(model.hidden_states(batch, encoded(model, batch))[0], own.hidden) < tolerance(case)


@torch.no_grad()
def test_images_are_encoded_alone_or_together(case: Any) -> None:
    model, batch = case.model, case.batch
    samples = batch.image_samples_I.tolist()
    together = model.encode_images(batch.images, samples)
    embeddings = together.embeddings_PD.split(list(together.tokens_of_image))
    for number, (image, sample) in enumerate(zip(batch.images, samples, strict=True)):
        of_sample = [other for other in range(len(samples)) if samples[other] == sample]
        part = model.encode_images([batch.images[other] for other in of_sample], [0] * len(of_sample))
        alone = part.split()[of_sample.index(number)]
        assert relative(alone.embeddings_PD, embeddings[number]) < tolerance(case)
        assert together.split()[number].per_image.keys() == image.keys() & together.per_image.keys()
    assert sum(together.tokens_of_image) == int(batch.vision_mask_BL.sum())


def test_saved_models_are_read_by_transformers(case: Any, tmp_path: Path) -> None:
    checkpoint = case.checkpoint
    checkpoint.save(case.model, tmp_path / "student")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "student", attn_implementation="eager").eval()
    with torch.no_grad():
        for sample, own in zip(case.samples, case.reference, strict=True):
            assert torch.equal(again(**sample.whole, use_cache=False).logits[0], own.logits)
    assert case.checkpoint.is_complete(tmp_path / "student") or case.name in ("paligemma", "paligemma2")
    weights = next(iter((tmp_path / "student").glob("*.safetensors")))
    assert weights.stat().st_mode == (tmp_path / "student/config.json").stat().st_mode
    weights.write_bytes(weights.read_bytes()[:1000])
    assert not checkpoint.is_complete(tmp_path / "student")


def test_the_head_is_read_without_the_model(every_case: Any) -> None:
    head, own = every_case.checkpoint.lm_head(torch.float32), every_case.model.head
    assert torch.equal(head.weight_VD, own.weight_VD)
    assert (head.bias_V, head.scale, head.softcap) == (own.bias_V, own.scale, own.softcap)
    assert (head.softcap is not None) == (every_case.name in ("paligemma2", "gemma4"))
    assert every_case.checkpoint.lm_head(torch.bfloat16).weight_VD.dtype == torch.bfloat16


def test_sizes(every_case: Any) -> None:
    config = every_case.checkpoint.config
    model = every_case.eager
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert config.hidden_size == every_case.reference[0].hidden.shape[1]
    assert config.vocab_size == every_case.reference[0].logits.shape[1]
    assert config.num_heads == every_case.reference[0].attention.shape[0]
    assert config.vision_tokens is None
    assert config.attention_layer == {"lfm2_vl": 2, "qwen3_5": 3}.get(every_case.name, 0)


def test_the_needed_mask(every_case: Any) -> None:
    """Only a prefix that attends in both directions sees padding."""
    assert every_case.model.needs_mask == (every_case.name in ("paligemma", "paligemma2"))
    assert every_case.model.encoder.joined


def test_no_image_reaches_the_parameters_that_images_reach(case: Any) -> None:
    model = case.copied()
    model.freeze_vision_tower()

    def reached(vision: Vision) -> set[str]:
        model.zero_grad(set_to_none=True)
        sum_of_zeros(vision).backward()
        return {name for name, parameter in model.named_parameters() if parameter.grad is not None}

    images = encoded(model, case.batch)
    assert images is not None
    projector = reached(images)
    assert projector and projector == reached(model.no_image())
    assert all(name.startswith(model.projector_prefixes) for name in projector)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert projector == {name for name in trained if name.startswith(model.projector_prefixes)}


@pytest.mark.parametrize("missing", ["token_type_ids", "mm_token_type_ids"])
def test_a_batch_without_type_ids_is_refused(cases: dict[str, Any], missing: str) -> None:
    case = cases["gemma3" if missing == "token_type_ids" else "qwen2_5_vl"]
    from dataclasses import replace

    from alignkd.vlm.errors import InputError

    with pytest.raises(InputError, match=f"needs {missing}, which the processor did not make"):
        case.model.hidden_states(replace(case.batch, types={}), encoded(case.model, case.batch))


@torch.no_grad()
def test_an_image_of_one_vision_token(cases: dict[str, Any]) -> None:
    """transformers' Mistral 3 itself encodes such an image only together with others."""
    model = cases["mistral3"].model
    config = model.config.raw
    side = config.vision_config.patch_size * config.spatial_merge_size
    size = torch.tensor([[side, side]])
    first, second = ({"pixel_values": torch.rand(1, 3, side, side), "image_sizes": size} for _ in range(2))
    alone, together = model.encode_images([first]), model.encode_images([first, second])
    assert alone.tokens_of_image == (1,)
    assert relative(alone.embeddings_PD, together.embeddings_PD[:1]) < 1e-5
    assert relative(together.embeddings_PD[1:], together.embeddings_PD[:1]) > 1e-3
