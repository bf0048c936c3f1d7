"""Self-checks at loading: what they find, and that each refuses what it is for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.model import head, images, recorder
from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel
from alignkd.vlm.families.huggingface.model.recorder import RecordedLayer

Break = Callable[[pytest.MonkeyPatch], None]


def refused(case: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        case.load()
    assert str(case.folder) in str(error.value) and "\n" not in str(error.value)


def no_softcap_of_scores(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecordedLayer, "softcap", None)


def other_scaling(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecordedLayer, "scaling", 0.5)


def mask_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RecordedLayer, "is_causal", True)


def no_softcap_of_logits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("alignkd.vlm.families.huggingface.model.model.head_of", uncapped)


def uncapped(model: Any) -> Any:
    found = head.head_of(model)
    return head.Head(weight_VD=found.weight_VD)


def images_swapped(patch: pytest.MonkeyPatch) -> None:
    own = images.ImageEncoder.output

    def output(self: Any, vision: Any) -> Any:
        from dataclasses import replace

        return own(self, replace(vision, embeddings_PD=vision.embeddings_PD.flip(0)))

    patch.setattr(images.ImageEncoder, "output", output)


def no_deepstack(patch: pytest.MonkeyPatch) -> None:
    """The features of other layers are those of the first."""
    own = images.ImageEncoder.output

    def output(self: Any, vision: Any) -> Any:
        found = own(self, vision)
        found.deepstack_features = found.deepstack_features[:1] * len(found.deepstack_features)
        return found

    patch.setattr(images.ImageEncoder, "output", output)


def mask_never_given(patch: pytest.MonkeyPatch) -> None:
    own = HuggingFaceModel.decoder_inputs

    def inputs(self: Any, *arguments: Any) -> dict[str, Any]:
        return {name: value for name, value in own(self, *arguments).items() if name != "attention_mask"}

    patch.setattr(HuggingFaceModel, "decoder_inputs", inputs)


@pytest.mark.parametrize(
    ("name", "how", "reason"),
    [
        ("paligemma2", no_softcap_of_scores, "recorded attention: differs by"),
        ("llava", other_scaling, "recorded attention: differs by"),
        ("gemma3", mask_dropped, "recorded attention: differs by"),
        ("paligemma", mask_dropped, "recorded attention: differs by"),
        ("paligemma2", no_softcap_of_logits, "logits of the head: differs by"),
        ("gemma4", no_softcap_of_logits, "logits of the head: differs by"),
        ("qwen2_5_vl", images_swapped, r"pixels or encoded images \(sample 0\): differs by"),
        ("qwen3_vl", no_deepstack, r"pixels or encoded images \(sample 0\): differs by"),
        ("paligemma", mask_never_given, "positions attend to padding although it is masked"),
    ],
)
def test_what_is_broken_is_refused(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str, how: Break, reason: str
) -> None:
    case = cases[name]
    assert case.model.findings  # sound as it is
    how(monkeypatch)
    refused(case, f"self-check of model_type '{case.checkpoint.config.model_type}' failed: {reason}")


def test_a_model_that_cannot_run_is_one_line(cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def output(self: Any, vision: Any) -> Any:
        raise KeyError("pooler_output\nis not here")

    monkeypatch.setattr(images.ImageEncoder, "output", output)
    refused(cases["llava"], "cannot be run as a family of models is run here .KeyError: .*use a model of another")


def test_images_that_cannot_be_joined_are_encoded_one_by_one(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = images._by_image

    def by_image(pooled: Any, tiles: Any) -> Any:
        if len(tiles) > 1:
            raise images.UnjoinableError("only one")
        return own(pooled, tiles)

    case = cases["mistral3"]
    expected = case.model.encode_images(case.batch.images)
    monkeypatch.setattr(images, "_by_image", by_image)
    model = case.load()
    assert not model.encoder.joined
    assert model.findings[0].note == "images are encoded one by one"
    found = model.encode_images(case.batch.images)
    assert found.tokens_of_image == expected.tokens_of_image
    assert torch.allclose(found.embeddings_PD, expected.embeddings_PD, atol=1e-5)


def test_findings(every_case: Any) -> None:
    names = [finding.name for finding in every_case.model.findings]
    assert names[0] == "images in one call or each alone"
    assert {"recorded attention", "logits of the head", "alone or in a padded batch"} <= set(names)
    assert any(name.startswith("pixels or encoded images") for name in names)
    for finding in every_case.model.findings:
        assert finding.difference < 1e-4 < finding.limit, str(finding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_rounding_in_16_bits_is_not_refused(case: Any, dtype: torch.dtype) -> None:
    model = case.load(dtype)
    assert model.dtype == dtype
    assert model.needs_mask == case.model.needs_mask
    assert all(finding.difference < 0.7 * finding.limit for finding in model.findings), model.findings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_what_is_broken_is_refused_in_16_bits(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    mask_dropped(monkeypatch)
    with pytest.raises(InputError, match="recorded attention"):
        cases["gemma3"].load(dtype)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_deeper_layer_that_cannot_be_recorded_is_refused_when_it_is_needed(
    cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own = RecordedLayer.scaling

    def scaling(layer: RecordedLayer) -> float:
        assert own.fget is not None
        return own.fget(layer) * (3.0 if layer.module.layer_idx == 1 else 1.0)

    assert cases[name].model.unusable_layers == {}
    monkeypatch.setattr(RecordedLayer, "scaling", property(scaling))
    model = cases[name].load()
    assert model.unusable_layers.keys() == {1}
    assert "not usable: layers 1" in [finding.note for finding in model.findings]
    with model.watched_layers([0]) as layers:
        assert layers.keys() == {0}
    with (
        pytest.raises(InputError, match=r"recorded in decoder layer 1 differs from the layer's own by .*; leave"),
        model.watched_layers([0, 1]),
    ):
        pass


def test_a_recorded_layer_is_as_before_afterwards(cases: dict[str, Any]) -> None:
    model = cases["qwen3_vl"].model
    attention = model.first_attention
    before = attention.config
    with pytest.raises(ZeroDivisionError), recorder.recorded_layers([attention]):
        assert attention.config is not before
        _ = 1 / 0
    assert attention.config is before and recorder.implementation_of(attention) == "sdpa"
    assert "_alignkd_watch" not in vars(attention)
