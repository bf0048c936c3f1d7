"""The terms `relation`, `visual_logit` and `nd` on cached targets are those of both live models."""

import itertools
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import torch
from click.testing import CliRunner
from processes_of_two import ended, run_two
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from alignkd.pipeline.cli import main
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.collate import collate
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.run.checks.fit import compared_tokens
from alignkd.student_train.run.checks.target_sources import targets_by_term
from alignkd.student_train.run.output.export_checkpoint import export_checkpoint
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.batch import collate_sequences

ReadMetrics = Callable[[Path], list[dict[str, Any]]]
OTHERS = dict.fromkeys(("attention", "vision_all", "vision_top", "logit"), 0.0)
NOTHING: dict[str, Any] = {
    **{"attention": "none", "vision_top": "none", "vision_all": "none"},
    "logits": {"kind": "none"},
}
TEACHER = {"seed": 3, "hidden_size": 64, "heads": 4}
NAMES = ["qwen3_vl", "smolvlm", "mobilevlm"]
Pair = Callable[..., tuple[TrainJob, VisionLanguageModel]]


@pytest.fixture
def pair(
    family_job: Callable[..., TrainJob],
    family_store: Callable[..., Path],
    checkpoint: Callable[..., Path],
    data: tiny_data.TinyData,
    golden: Path,
    tmp_path: Path,
) -> Pair:
    """`pair("qwen3_vl", {"vision_states": "float32"}, losses={...})`: a run on such a store, and the live teacher."""

    def original(kept: dict[str, Any], **train: Any) -> tuple[TrainJob, VisionLanguageModel]:
        """The original layout, whose images have equally many tokens."""
        store = tmp_path / f"store-{len(list(tmp_path.iterdir()))}"
        teacher = TeacherConfig(
            checkpoint=str(golden / "teacher"), vision_config=golden / "clip", sanity="off", device="cpu"
        )
        of_store = StoreConfig(**{**NOTHING, "path": store, "shard_size": 4, **kept})
        samples = (DataSet(path=data.conversations, images=data.images),)
        dump(DumpJob(data=samples, template="v1", max_tokens=4096, teacher=teacher, store=of_store))
        job = TrainJob(
            student=golden / "student",
            vision_config=golden / "clip",
            images=data.images,
            template="v1",
            max_tokens=4096,
            store=store,
            train=TrainConfig(
                **{"output": tmp_path / "out", "steps": 2, "micro_batch": 4, "learning_rate": 1e-3} | train
            ),
        )
        return job, open_checkpoint(str(golden / "teacher"), vision_config=golden / "clip").load_model()

    def make(name: str, kept: dict[str, Any], **train: Any) -> tuple[TrainJob, VisionLanguageModel]:
        if name == "mobilevlm":
            return original(kept, **train)
        job = family_job(name, store=family_store(name, **{**NOTHING, **kept}), **train)
        return job, open_checkpoint(str(checkpoint(name, **TEACHER))).load_model()

    return make


def opened(job: TrainJob) -> tuple[DistilledStudent, Any]:
    checkpoint = job.open_student()
    samples = open_samples(job, checkpoint)
    return build_student(job, checkpoint, samples.reader).eval(), samples


def batch_of(student: DistilledStudent, samples: Any, places: list[int]) -> Any:
    targets = targets_by_term(samples.reader.manifest, student.losses).values()
    return collate([samples[place] for place in places], targets=targets, attention_pairs="tqv")


def passed(model: VisionLanguageModel, example: Any, layer: int = 0) -> dict[str, Tensor]:
    """States [L, D] of one sample alone: last hidden, after a layer; and the projector's output [P, D]."""
    batch = collate_sequences([example])
    vision = model.encode_images(batch.images, batch.image_samples_I.tolist()) if batch.images else None
    seen: list[Any] = []
    handle = model.decoder_layers[layer].register_forward_hook(lambda _, inputs, output: seen.append(output))
    last = model.hidden_states(batch, vision)[0]
    handle.remove()
    after = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    found = {"last_hidden": last, f"layer_{layer}": after[0]}
    return found if vision is None else found | {"projector": vision.embeddings_PD}


def cosines(states: Tensor) -> Tensor:
    units = states / states.norm(dim=-1, keepdim=True)
    return units @ units.T


def check_like(student: DistilledStudent, found: Any, expected: Tensor, count: int, tolerance: float = 2e-4) -> None:
    """The same sum and gradients of all trained parameters."""
    assert found.count == count
    torch.testing.assert_close(found.total, expected, rtol=tolerance, atol=1e-5)
    torch.testing.assert_close(found.parts.sum(), expected.detach(), rtol=tolerance, atol=1e-5)
    parameters = [value for value in student.parameters() if value.requires_grad]
    ours, theirs = (
        torch.cat([
            torch.zeros_like(value).flatten() if gradient is None else gradient.flatten()
            for value, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True), strict=True
            )
        ])
        for loss in (found.total, expected)
    )  # fmt: skip
    assert theirs.norm() > 0
    assert (ours - theirs).norm() < 50 * tolerance * theirs.norm()


RELATIONS = [
    ("last_hidden", {"vision_relations": "float32"}, 2e-4),
    ("last_hidden", {"vision_relations": "int8_unit"}, 2e-2),
    ("last_hidden", {"vision_states": "float32"}, 2e-4),
    ("projector", {"vision_relations": "float32", "relations_of": "projector"}, 2e-4),
    ("projector", {"vision_all": "float32"}, 2e-4),
    ("layer_0", {"vision_relations": "float32", "relations_of": "layer_0"}, 2e-4),
]


@pytest.mark.parametrize(("of", "kept", "tolerance"), RELATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_relations_are_those_of_both_live_models(
    name: str,
    of: str,
    kept: dict[str, str],
    tolerance: float,
    pair: Pair,
) -> None:
    """Images of different numbers of tokens and text-only samples in one batch; loops over samples and images."""
    layer = {"relations_layer": 1} if of.startswith("layer") else {}
    job, teacher = pair(name, kept, losses={**OTHERS, "relation": 2.0, "relations_of": of, **layer})
    student, samples = opened(job)
    places = list(range(len(samples)))
    found = student(batch_of(student, samples, places))["relation"]
    total, count = torch.zeros(()), 0
    for place in places:
        example, record = samples[place]
        if not record.has_image:
            continue
        with torch.no_grad():
            theirs = passed(teacher, example)[of]
        ours = passed(student.model, example, 1 if layer else 0)["layer_1" if layer else of]
        if of != "projector":
            theirs, ours = (states[record.vision_positions.tolist()] for states in (theirs, ours))
        ends = list(itertools.accumulate(record.tokens_of_image))
        for tokens, end in zip(record.tokens_of_image, ends, strict=True):
            grams = [cosines(states[end - tokens : end]).flatten() for states in (ours, theirs)]
            total = total + 1 - torch.cosine_similarity(*grams, dim=0)
            count += 1
    check_like(student, found, total, count, tolerance)
    counts = GlobalCounts([samples.reader], student.model.config, ["relation"])
    assert counts(samples.reader.dataset_index * 0 + torch.arange(len(samples)).numpy())["relation"] == count


@pytest.mark.parametrize("name", NAMES)
def test_visual_logits_are_those_of_both_live_models(name: str, pair: Pair) -> None:
    """Direct log-softmax of all logits at once against the fused chunks."""
    settings = {"visual_logit": 2.0, "visual_logit_temperature": 1.5, "head_chunk_mib": 1}
    job, teacher = pair(name, {"vision_states": "float32"}, losses={**OTHERS, **settings})
    student, samples = opened(job)
    num_tokens = compared_tokens(samples.reader, student.model.config)
    places = list(range(len(samples)))
    found = student(batch_of(student, samples, places))["visual_logit"]
    total, count = torch.zeros(()), 0
    for place in places:
        example, record = samples[place]
        if record.has_image:
            positions = record.vision_positions.tolist()
            with torch.no_grad():
                theirs = teacher.head(passed(teacher, example)["last_hidden"][positions])[:, :num_tokens] / 1.5
            ours = student.model.head(passed(student.model, example)["last_hidden"][positions])[:, :num_tokens] / 1.5
            divergence = kl_div(log_softmax(ours, -1), log_softmax(theirs, -1), log_target=True, reduction="sum")
            total, count = total + divergence * 1.5**2, count + len(positions)
    check_like(student, found, total, count)


@pytest.mark.parametrize("source", ["state_norms", "hidden"])
@pytest.mark.parametrize("name", NAMES)
def test_norm_and_direction_are_those_of_both_live_models(
    name: str,
    source: str,
    pair: Pair,
    tmp_path: Path,
) -> None:
    """Class means by loops over the teacher's states; tokens that are rare have none."""
    hidden: dict[str, Any] = {"logits": {"kind": "hidden", "dtype": "float32"}}
    first, teacher = pair(name, hidden)
    command = [
        "shards",
        "centres",
        str(first.stores[0].path),
        "--out",
        str(tmp_path / "centres.safetensors"),
        "--min-count",
        "3",
    ]
    written = CliRunner().invoke(main, command)
    assert written.exit_code == 0 and "left out" in written.output, written.output
    kept = hidden if source == "hidden" else {"state_norms": "float32"}
    job, _ = pair(name, kept, losses={**OTHERS, "nd": 2.0}, centres=tmp_path / "centres.safetensors")
    student, samples = opened(job)
    places = list(range(len(samples)))
    by_token: dict[int, list[Tensor]] = {}
    norms: list[list[Tensor]] = []
    for place in places:
        example, record = samples[place]
        with torch.no_grad():
            states = passed(teacher, example)["last_hidden"][record.supervised_positions.tolist()]
        norms.append([state.norm() for state in states])
        for token, state in zip(example.positions.next_labels.tolist(), states, strict=True):
            by_token.setdefault(token, []).append(state)
    means = {token: torch.stack(states).mean(0) for token, states in by_token.items() if len(states) >= 3}
    assert 3 < len(means) < len(by_token)
    stored = load_file(tmp_path / "centres.safetensors")
    assert stored["tokens"].tolist() == sorted(means)
    torch.testing.assert_close(stored["centres"], torch.stack([means[token] for token in sorted(means)]))
    adapter = student.adapters.state_adapter
    assert adapter is not None and adapter.weight.requires_grad
    found = student(batch_of(student, samples, places))["nd"]
    total, count = torch.zeros(()), 0
    for place in places:
        example, record = samples[place]
        ours = passed(student.model, example)["last_hidden"][record.supervised_positions.tolist()] @ adapter.weight.T
        for state, token, norm in zip(ours, example.positions.next_labels.tolist(), norms[place], strict=True):
            count += 1
            if token in means:
                total = total + 1 - state @ means[token] / means[token].norm() / torch.maximum(state.norm(), norm)
    check_like(student, found, total, count)


ALL_TERMS = {"relation": 0.5, "visual_logit": 1.0, "nd": 2.0}
KEPT = {"vision_states": "bfloat16", "vision_relations": "float16", "state_norms": "float32"}


@pytest.fixture
def whole_job(
    family_job: Callable[..., TrainJob], family_store: Callable[..., Path], tmp_path: Path
) -> Callable[..., TrainJob]:
    """A run with all three terms on a store that keeps every target of theirs."""

    def make(name: str, backend: str = "zarr", **settings: Any) -> TrainJob:
        hidden = family_store(name, **{**NOTHING, "logits": {"kind": "hidden"}})
        file = tmp_path / "centres.safetensors"
        command = ["shards", "centres", str(hidden), "--out", str(file), "--min-count", "2"]
        assert CliRunner().invoke(main, command).exit_code == 0
        store = family_store(name, **{**NOTHING, **KEPT, "backend": backend})
        return family_job(name, store=store, losses={**OTHERS, **ALL_TERMS}, centres=file, **settings)

    return make


@pytest.mark.parametrize("name", ["mobilevlm", "smolvlm"])
def test_a_whole_run(name: str, pair: Pair, read_metrics: ReadMetrics, tmp_path: Path) -> None:
    """Dump, class means, training, a student that all three terms have moved."""
    first, _ = pair(name, {"logits": {"kind": "hidden"}})
    command = ["shards", "centres", str(first.stores[0].path), "--out", str(tmp_path / "centres.safetensors")]
    assert CliRunner().invoke(main, [*command, "--min-count", "2"]).exit_code == 0
    settings: dict[str, Any] = {"steps": 12, "learning_rate": 2e-3, "warmup_ratio": 0, "micro_batch": 10}
    settings["validation"] = {"share": 0.2, "every": 4}
    losses = {**OTHERS, **ALL_TERMS, "relation": 20.0, "nd": 10.0, "supervised": 0.01}
    job, _ = pair(name, KEPT, losses=losses, centres=tmp_path / "centres.safetensors", **settings)
    train(job)
    lines = read_metrics(job.train.output)
    for term in ALL_TERMS:
        assert 0 < lines[-1][term] < lines[0][term], term


def test_two_ranks_are_one(
    whole_job: Callable[..., TrainJob], start_child: Any, one_thread: None, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 3, "global_batch": 4}
    alone = whole_job("qwen3_vl", output=tmp_path / "alone", micro_batch=4, **settings)
    train(alone)
    job = whole_job("qwen3_vl", output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, job)
    found, expected = (read_metrics(one.train.output) for one in (job, alone))
    assert any(line["samples_text_only"] for line in expected)
    assert all(line[term] for line in expected for term in ALL_TERMS)
    for line, reference in zip(found, expected, strict=True):
        for figure, value in reference.items():
            assert line[figure] == (value if value is None else pytest.approx(value, rel=5e-5)), figure


def test_a_killed_run_is_the_unbroken_one_and_both_layouts_train_alike(
    whole_job: Callable[..., TrainJob], start_child: Any, one_thread: None, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 4, "micro_batch": 2, "global_batch": 4, "checkpoint_every": 2}
    settings |= {"gradient_checkpointing": True}
    unbroken = whole_job("qwen3_vl", output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = whole_job("qwen3_vl", "webdataset", output=tmp_path / "killed", data_workers=2, **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 4, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    written = [one.train.output / "student" / "model.safetensors" for one in (job, unbroken)]
    assert written[0].read_bytes() == written[1].read_bytes()
    adapters = load_file(job.train.output / "adapters.safetensors")
    assert adapters["state_adapter.weight"].shape == (64, 32)
    exported = export_checkpoint(job, None, tmp_path / "exported")
    assert exported.adapters.read_bytes() == (job.train.output / "adapters.safetensors").read_bytes()


def test_stores_of_one_run_have_the_same_kind_of_target(
    family_job: Callable[..., TrainJob], family_store: Callable[..., Path]
) -> None:
    kinds = [{"vision_relations": "float16"}, {"vision_relations": "int8_unit"}, {"vision_states": "bfloat16"}]
    stores = [family_store("smolvlm", **{**NOTHING, **kept}) for kept in kinds]

    def job(*chosen: Path) -> TrainJob:
        listed = tuple(TrainStore(path=path, name=f"store {number}") for number, path in enumerate(chosen))
        return replace(family_job("smolvlm", losses={**OTHERS, "relation": 1.0}, steps=1), store=listed)

    both = opened(job(stores[0], stores[1]))  # codecs may differ: a mixed batch is decoded
    samples = both[1]
    found = both[0](batch_of(both[0], samples, [0, len(samples) - 1, 3]))["relation"]
    assert found.count > 0 and found.total.isfinite()
    with pytest.raises(ValueError, match=r"the source of vision_relations is stored and absent"):
        opened(job(stores[0], stores[2]))


@pytest.mark.parametrize(
    ("kept", "losses", "line"),
    [
        ({}, {"relation": 1.0}, r"keeps no target for it; .* dump again with store.vision_relations and .*last_hidden"),
        (
            {"vision_relations": "float16"},
            {"relation": 1.0, "relation_rows": "plain"},
            "dump again with store.vision_states, which losses.relation_rows 'plain' needs",
        ),
        (
            {"vision_relations": "float16"},
            {"relation": 1.0, "relations_of": "layer_1", "relations_layer": 0},
            r"store.relations_of layer_1 \(it has those of last_hidden\)",
        ),
        ({"vision_relations": "float16"}, {"visual_logit": 1.0}, "dump again with store.vision_states"),
        (
            {"vision_relations": "float16", "relations_of": "layer_1"},
            {"relation": 1.0, "relations_of": "layer_1", "relations_layer": 99},
            r"losses.relations_layer is 99, but the student has \d+ decoder layers",
        ),
    ],
)
def test_what_a_store_lacks(
    kept: dict[str, str],
    losses: dict[str, Any],
    line: str,
    family_job: Callable[..., TrainJob],
    family_store: Callable[..., Path],
    data: tiny_data.TinyData,
) -> None:
    job = family_job("qwen3_vl", store=family_store("qwen3_vl", **{**NOTHING, **kept}), losses=OTHERS | losses)
    with pytest.raises(ValueError, match=line):
        train(job)
