"""Attention of chosen layers from the dump to the trained student, compared with the live teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stem_runs import dumped, entry, trained
from transformers import LlamaModel

from alignkd.pipeline.config.run_config import load_run_config
from alignkd.student_train.data.collate import collate
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.attention.match import FixedHeads
from alignkd.student_train.run.attention.chosen import attention_match, chosen_attention
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model

WriteConfig = Callable[..., Path]
STEPS = 2  # each sample once
EXACT = {"codec": "float32"}


ENTRIES = [
    entry(0, ["coffee.png", "chelsea.png"], "Is <image> like <image>?"),
    entry(1, [], "Name a color.", "green"),
    entry(2, ["rocket.jpg"], "<image>\nWhat is this?", "a rocket on its way to somewhere"),
    entry(3, ["coffee.png"], "<image>\nA cup, or two of them?", "one"),
]


@pytest.fixture
def write(write_config: WriteConfig, tmp_path: Path) -> WriteConfig:
    """write(name, attention=, losses=, train=): a run over `ENTRIES`."""
    (tmp_path / "data.json").write_text(json.dumps(ENTRIES))

    def config(name: str, *, attention: Any, losses: Any = None, store: Any = None, **train: Any) -> Path:
        kept = {"logits": {"kind": "topk", "top_k": 8}, "vision_all": "none", "vision_top": "none"}
        return write_config(
            f"{name}.yaml",
            data={"conversations": str(tmp_path / "data.json")},
            store={"path": str(tmp_path / f"store-{name}"), "attention": attention, **kept, **(store or {})},
            train={
                "output": str(tmp_path / f"out-{name}"),
                "steps": STEPS,
                "micro_batch": 2,
                "learning_rate": 1e-3,
                "losses": {"vision_all": 0, "vision_top": 0, "attention": 1000.0, **(losses or {})},
                **train,
            },
            teacher={"sanity": "off"},
        )

    return config


def test_two_layers_lower_the_loss(write: WriteConfig, tmp_path: Path) -> None:
    """From the dump to the export: MobileVLM, {0: 0, 1: 1}, mse, grouped heads."""
    losses = {"attention_layers": {0: 0, 1: 1}, "attention_heads": "grouped", "attention": 1e6, "logit": 0}
    config = write("two", attention={"layers": [0, 1], **EXACT}, losses=losses, micro_batch=4, steps=4)
    dumped(config)
    lines = trained(config)
    assert lines[-1]["attention"] < lines[0]["attention"]
    assert set(load_file(tmp_path / "out-two" / "adapters.safetensors")) == {
        *(f"{name}_adapter.{part}" for name in ("attn", "proj") for part in ("weight", "bias"))
    }


@pytest.mark.parametrize("pairs", ["tqv", "vqv", "all"])
def test_the_loss_is_that_of_the_live_teacher(write: WriteConfig, golden: Path, pairs: str) -> None:
    """Teacher and student run whole with their attention matrices; the loss in plain numpy."""
    losses = {"attention_layers": {0: [0, 1], 1: 1}, "attention_heads": "grouped", "logit": 0.0}
    stored = {"layers": [0, 1], "pairs": pairs, **EXACT}
    config = write("live", attention=stored, losses=losses)
    reader = dumped(config)
    job = load_run_config(config, "train").train_job()
    samples = open_samples(job, job.open_student())
    student = build_student(job, job.open_student(), reader)
    match = attention_match(reader, student.model.config, job.train)
    every = [samples[number] for number in range(len(samples))]
    batch = collate(every, targets=["attention"], attention_pairs=chosen_attention(reader, match))
    found = student(batch)["attention"]
    teacher = load_model(golden / "teacher", vision_config=golden / "clip")
    maps = [whole_maps(model, batch) for model in (teacher, student.model)]
    weight_ST = FixedHeads("grouped", num_students=4, num_teachers=8).weight_ST.numpy()
    totals, counts = [0.0, 0.0], [0, 0]
    for sample, (example, _) in enumerate(every):
        at = example.positions
        rows = {
            "tqv": at.tqv_query_positions,
            "vqv": at.vision_positions,
            "all": np.concatenate([at.tqv_query_positions, at.vision_positions]),
        }[pairs]
        place = np.ix_(range(4), rows, at.vision_positions)
        for own, others in ((0, (0, 1)), (1, (1,))):
            mean = np.mean([maps[0][layer][sample] for layer in others], axis=0)
            difference = np.einsum("st,tij->sij", weight_ST, mean)[place] - maps[1][own][sample][place]
            totals[own] += np.square(difference).sum()
            counts[own] += difference.size
    assert found.count == sum(counts)
    assert found.total.item() == pytest.approx(sum(totals), rel=1e-5)
    line, *_ = trained(write("live", attention=stored, losses=losses, micro_batch=4, steps=1))
    assert line["attention"] == pytest.approx(sum(totals) / sum(counts), rel=1e-5)
    for layer in (0, 1):
        assert line[f"attention_{layer}"] == pytest.approx(totals[layer] / counts[layer], rel=1e-5)


@torch.no_grad()
def whole_maps(model: Any, batch: Any) -> list[np.ndarray[Any, Any]]:
    """Attention of layers 0 and 1, float32 [B, H, L, L], from transformers' eager attention."""
    sequences = batch.sequences
    vision = model.encode_images(sequences.images, sequences.image_samples_I.tolist())
    llama = next(module for module in model.modules() if isinstance(module, LlamaModel))
    before = llama.config._attn_implementation
    llama.config._attn_implementation = "eager"
    try:
        found = llama(inputs_embeds=model.embed(sequences, vision), output_attentions=True, use_cache=False)
    finally:
        llama.config._attn_implementation = before
    return [found.attentions[layer].numpy() for layer in (0, 1)]


def test_layers_that_are_not_there(write: WriteConfig) -> None:
    config = write("few", attention={"layers": [0, 1], **EXACT})
    dumped(config)
    for layers, message in (
        ({0: 2}, r"teacher's layer 2, but there is attention of the teacher's layers 0, 1 only"),
        ({7: 0}, r"of the student: decoder layer 7 does not exist"),
    ):
        with pytest.raises(TrainError, match=message) as error:
            trained(write("few", attention={"layers": [0, 1]}, losses={"attention_layers": layers}))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("heads", ["adapter", "grouped"])
def test_the_stem_gives_the_same_losses(write: WriteConfig, heads: str) -> None:
    """Stored; left to the stem by the store; or by the run, from a store of the first layer with a deeper stem."""
    losses = {"attention_layers": {0: 0, 1: [0, 1]}, "attention_heads": heads, "vision_top": 0.1, "vision_all": 0}
    settings = {"losses": losses, "adapter_init": "grouped_heads"}
    stored = write("stored", attention={"layers": [0, 1], **EXACT}, store={"vision_top": "float32"}, **settings)
    left = write("left", attention={"layers": [0, 1], "codec": "stem"}, store={"vision_top": "stem"}, **settings)
    deeper = {"vision_top": "float32", "stem": {"depth": 2}}
    chosen = write("chosen", attention="float32", store=deeper, targets={"attention": "stem"}, **settings)
    found = []
    for config in (stored, left, chosen):
        dumped(config)
        found.append(trained(config))
    for lines in found[1:]:
        for line, expected in zip(lines, found[0], strict=True):
            for name in ("loss", "grad_norm", "attention", "vision_top"):
                assert line[name] == pytest.approx(expected[name], rel=2e-6), (name, line["step"])
    shallow = write("shallow", attention="stem", store={"vision_top": "stem"}, **settings)
    dumped(shallow)
    with pytest.raises(TrainError, match=r"attention of the teacher's layers 0 only"):
        trained(shallow)


@pytest.mark.parametrize(("stored", "equals"), [({"groups": 4}, "all"), ("mean", "all")])
def test_stored_means_are_the_means_of_stored_heads(write: WriteConfig, stored: Any, equals: str) -> None:
    """Four groups for a student of four heads compared with its groups; means compared with means."""
    own = {"attention_layers": {0: 1, 1: 0}, "attention_heads": "mean" if stored == "mean" else "grouped"}
    found = []
    for name, kept in (("few", stored), ("every", equals)):
        config = write(name, attention={"layers": [0, 1], "heads": kept, **EXACT}, losses=own)
        dumped(config)
        found.append(trained(config))
    for line, expected in zip(*found, strict=True):
        assert line["attention"] == pytest.approx(expected["attention"], rel=1e-5), line["step"]


@pytest.mark.parametrize("attention", ["float32", {"layers": [0, 1], "pairs": "all", **EXACT}])
def test_every_form_counts_its_elements(write: WriteConfig, attention: Any, tmp_path: Path) -> None:
    """A step compares the elements in the batches with those in the store's index; one sample has two images."""
    dumped(write("forms", attention=attention))
    forms = ["kl", "cosine", "row_cosine", *(["filtered_cosine"] if attention != "float32" else [])]
    for form in forms:
        heads = "mean" if form.endswith("cosine") else "grouped"
        config = write(
            "forms",
            attention=attention,
            losses={"attention": 1.0, "attention_form": form, "attention_heads": heads},
            steps=1,
            micro_batch=4,
            output=str(tmp_path / f"out-{form}"),
        )
        (line,) = trained(config)
        assert 0 < line["attention"] < 10
