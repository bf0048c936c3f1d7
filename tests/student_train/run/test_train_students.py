"""One store, many students: another width, depth or number of heads needs only another checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.trainer import train
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def random_student(golden_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """random_student(name, **changes): the golden student's config changed, random weights, the teacher's tower."""

    def write(name: str, **changes: Any) -> Path:
        source, folder = golden_folder / "student", tmp_path / name
        raw = json.loads((source / "config.json").read_text()) | changes
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(raw))
        model = new_model(load_config(folder, vision_config=golden_folder / "clip"), seed=1)
        tower = "model.vision_tower."
        weights = load_file(source / "model.safetensors")
        model.load_state_dict({k: v for k, v in weights.items() if k.startswith(tower)}, strict=False)
        save_model(model, folder, tokenizer_from=source)
        return folder

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 6},
        {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2},
        {"num_attention_heads": 8, "num_key_value_heads": 2},
    ],
    ids=["wide", "shallow", "grouped-query heads"],
)
def test_any_shape_learns_from_the_same_store(
    changes: dict[str, int],
    many_store: Path,
    make_job: MakeJob,
    read_metrics: ReadMetrics,
    random_student: Callable[..., Path],
) -> None:
    job = make_job(many_store, steps=8, micro_batch=5, adapter_init="mean_of_heads")
    result = train(TrainJob(**vars(job) | {"student": random_student("student", **changes)}))
    lines = read_metrics(job.train.output)
    for term in job.train.losses.weights:
        assert lines[-1][term] < lines[0][term], term
    assert result.adapters is not None
    heads, width = changes.get("num_attention_heads", 4), changes.get("hidden_size", 64)
    adapters = load_file(result.adapters)
    assert adapters["attn_adapter.weight"].shape == (heads, 8, 1, 1)
    assert adapters["proj_adapter.weight"].shape == (width, 128, 1)


def test_grouped_query_attention_is_that_of_the_decoder(
    golden_folder: Path, random_student: Callable[..., Path]
) -> None:
    """The rows computed beside SDPA are those of transformers' own attention, key heads shared by groups."""
    folder = random_student("student", num_attention_heads=8, num_key_value_heads=2)
    config = load_config(folder, vision_config=golden_folder / "clip")
    config.llama._attn_implementation = "eager"
    model = new_model(config, seed=1).eval()
    embeds = torch.randn(1, 20, config.hidden_size)
    rows, cols = torch.arange(10, 20)[None], torch.arange(3, 9)[None]
    whole = model.model(inputs_embeds=embeds, use_cache=False, output_attentions=True).attentions[0]
    found = model.first_layer_attention(embeds, rows, cols, chunk_bytes=2000)
    torch.testing.assert_close(found, whole[:, :, 10:20, 3:9], rtol=1e-5, atol=1e-6)


def test_a_student_with_other_vision_tokens_learns_from_logits(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, random_student: Callable[..., Path]
) -> None:
    """LLaVA's projector makes 576 tokens of an image, the teacher's 144: same answers, other positions."""
    student = random_student("student", mm_projector_type="mlp2x_gelu")
    job = make_job(many_store, steps=4, micro_batch=10)
    refused = (
        r"an image is 144 tokens in the store, 576 in the student, so losses\.attention, losses\.vision_all, "
        r"losses\.vision_top have nothing to compare; set them to 0 "
    )
    with pytest.raises(TrainError, match=refused) as error:
        train(TrainJob(**vars(job) | {"student": student}))
    assert "\n" not in str(error.value)

    off = {"attention": 0.0, "vision_all": 0.0, "vision_top": 0.0}
    job = make_job(many_store, steps=4, micro_batch=10, losses=off)
    with pytest.raises(TrainError, match=r"longest sample has \d{3} tokens, max_tokens is 300"):
        train(TrainJob(**vars(job) | {"student": student, "max_tokens": 300}))
    result = train(TrainJob(**vars(job) | {"student": student}))
    lines = read_metrics(job.train.output)
    assert lines[-1]["logit"] < lines[0]["logit"] and lines[-1]["supervised"] < lines[0]["supervised"]
    assert result.samples_by_kind["one_image"] > 0


def test_another_vocabulary_is_refused(
    many_store: Path, make_job: MakeJob, random_student: Callable[..., Path]
) -> None:
    job = make_job(many_store)
    with pytest.raises(TrainError, match="the teacher's vocab_size is 512, the student's 640"):
        train(TrainJob(**vars(job) | {"student": random_student("student", vocab_size=640)}))
