"""Cross-entropy of answers that a model wrote, with a factor: against sums by hand."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes_of_two import run_two
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from alignkd.storage import Codecs, LogitsCodec, StoreReader
from alignkd.student_train.checkpoints.checkpoint import check_same_settings
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.targets import RaggedEntries, TruncatedTargets
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.output import METRICS, VALIDATION
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.families.family import Head
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

LOGITS = {
    "full": LogitsCodec(kind="full", dtype="float32"),
    "topk": LogitsCodec(kind="topk", top_k=20, dtype="float32"),
}


def conversation(*answers: tuple[str, bool], image: str | None = None) -> dict[str, Any]:
    """A sample whose answers a model wrote or not."""
    turns: list[dict[str, Any]] = []
    for number, (text, generated) in enumerate(answers):
        mark = "<image>\n" if image and not number else ""
        turns.append({"from": "human", "value": f"{mark}question {number}?"})
        turns.append({"from": "gpt", "value": text} | ({"generated": True} if generated else {}))
    return {"id": "-".join(text for text, _ in answers), "conversations": turns} | ({"image": image} if image else {})


@pytest.fixture(scope="module")
def samples(v1_samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    image = next(sample["image"] for sample in v1_samples if "image" in sample)
    return [
        conversation(("a cup of coffee", False), ("two spoons, I think", True), ("no", False), image=image),
        conversation(("on the table, to the left", True)),
        conversation(("green", False), image=image),
        conversation(("yes", True), ("the second answer is a longer one", False), ("and the third", True)),
    ]


@pytest.fixture(scope="module")
def stores(dump: Any, samples: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("generated")
    codecs = {
        name: Codecs(attention="float32", vision_top="float32", vision_all="float32", logits=logits)
        for name, logits in LOGITS.items()
    }
    return {name: dump(folder / name, samples, codecs=codecs[name]) for name in LOGITS}


@pytest.fixture
def open_dataset(
    stores: dict[str, Path], student_builder: MobileVLMPreparation, images_folder: Path
) -> Callable[..., CachedDataset]:
    return lambda name="full", marks=True: CachedDataset(
        StoreReader(stores[name]), student_builder, images_folder, marks_generated=marks
    )


def batch_of(dataset: CachedDataset, positions: Sequence[int] | None = None) -> TrainBatch:
    chosen = range(len(dataset)) if positions is None else positions
    return collate([dataset[i] for i in chosen], targets=LossConfig().needed_targets.values(), attention_pairs="tqv")


def distilled(model: MobileVLM, folder: Path, **losses: Any) -> DistilledStudent:
    adapters = Adapters(heads=(8, 4), hidden_sizes=(128, 64))
    adapters.load(folder / "adapters.safetensors")
    return DistilledStudent(model, adapters, LossConfig(**losses))


def marks_by_hand(builder: MobileVLMPreparation, conversations: list[dict[str, Any]], files: list[bytes]) -> list[bool]:
    """How many labels each answer adds to the conversation before it."""
    marks: list[bool] = []
    for end in range(2, len(conversations) + 1, 2):
        example = builder.build(turns_of(conversations[:end]), files)
        added = len(example.positions.supervised_positions) - len(marks)
        assert added > 1
        marks += [conversations[end - 1].get("generated", False)] * added
    return marks


def test_positions_are_those_of_the_answers(
    open_dataset: Callable[..., CachedDataset], student_builder: MobileVLMPreparation, images_folder: Path
) -> None:
    dataset, found = open_dataset(), set()
    for position in range(len(dataset)):
        example, record = dataset[position]
        files = [(images_folder / image).read_bytes() for image in record.images]
        assert example.generated is not None
        assert example.generated.tolist() == marks_by_hand(student_builder, record.conversations, files)
        found.add((bool(example.generated.any()), bool(example.generated.all())))
    assert found == {(True, False), (True, True), (False, False)}


def label_logprobs(student: DistilledStudent, batch: TrainBatch) -> Tensor:
    """Log-probabilities of the labels from all logits at once, float64 [N]."""
    with torch.no_grad():
        vision = student.model.encode_images(batch.sequences.images, batch.sequences.image_samples_I.tolist())
        hidden_BLD = student.model.hidden_states(batch.sequences, vision)
        logits_NV = student.model.lm_head(hidden_BLD.flatten(0, 1)[batch.supervised_N]).double()
    return functional.log_softmax(logits_NV, -1).gather(1, batch.labels_N[:, None])[:, 0]


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.5, 1.0, 3.0])
def test_the_term_is_the_mean_of_factor_times_cross_entropy(
    kind: str,
    factor: float,
    open_dataset: Callable[..., CachedDataset],
    new_student: Callable[[], MobileVLM],
    golden_folder: Path,
) -> None:
    dataset = open_dataset(kind)
    batch = batch_of(dataset)
    student = distilled(new_student(), golden_folder, supervised_on_generated=factor)
    found: dict[str, LossSum] = student(batch)
    marks = np.concatenate([dataset[position][0].generated for position in range(len(dataset))])  # type: ignore[arg-type]
    values = [
        -logprob * (factor if mark else 1.0)
        for logprob, mark in zip(label_logprobs(student, batch).tolist(), marks, strict=True)
    ]
    assert found["supervised"].mean.item() == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert found["supervised"].count == len(values)
    ends = np.cumsum([len(dataset[position][0].positions.supervised_positions) for position in range(len(dataset))])
    by_sample = [sum(values[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    assert found["supervised"].parts.tolist() == pytest.approx(by_sample, rel=1e-5, abs=1e-6)

    plain: dict[str, LossSum] = distilled(new_student(), golden_folder)(batch)
    assert found["logit"].total.item() == pytest.approx(plain["logit"].total.item(), rel=1e-6)


@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("positions_at_once", [1, 3, 7])
def test_chunks_of_the_head_take_their_own_factors(positions_at_once: int, with_teacher: bool) -> None:
    """With a truncated teacher both terms share one pass over a chunk; values and gradients as without chunks."""
    generator = torch.Generator().manual_seed(1)
    hidden_ND, weight_VD = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((7, 5), (40, 5)))
    labels_N = torch.randint(40, (7,), generator=generator)
    generated_N = torch.tensor([True, False, False, True, True, False, True])
    targets = None
    if with_teacher:
        entries = RaggedEntries(
            ids_E=torch.arange(14, dtype=torch.int32).to(torch.uint16),
            values_E=torch.full((14,), -3.0),
            offsets=torch.arange(0, 15, 2),
            widest=2,
        )
        targets = TruncatedTargets(entries=entries, tail_logmass_N=torch.full((7,), 1 - 2 * np.exp(-3.0)).log())
    losses = LossConfig(logit=0.5 * with_teacher, supervised_on_generated=0.3)
    leaves = [hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()]
    inputs = losses.head_inputs(labels_N, targets, None, generated_N=generated_N)
    found, *_ = fused_head_losses(
        leaves[0],
        Head(weight_VD=leaves[1]),
        head_terms(inputs, losses.weights),
        chunk_bytes=8 * 40 * positions_at_once,
    )
    whole = [hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()]
    factors_N = torch.where(generated_N, 0.3, 1.0)
    values_N = functional.cross_entropy(whole[0] @ whole[1].T, labels_N, reduction="none") * factors_N
    torch.testing.assert_close(found.parts, values_N.detach(), rtol=1e-6, atol=1e-9)
    if not with_teacher:  # the terms of one pass have their gradient in common
        found.total.backward()
        values_N.sum().backward()
        for leaf, expected in zip(leaves, whole, strict=True):
            torch.testing.assert_close(leaf.grad, expected.grad, rtol=1e-6, atol=1e-9)


def gradients(student: DistilledStudent, batch: TrainBatch, term: str = "supervised") -> dict[str, Tensor]:
    student.zero_grad()
    student(batch)[term].mean.backward()
    return {name: value.grad.clone() for name, value in student.named_parameters() if value.grad is not None}


def test_gradients_are_the_weighted_sum_of_those_of_each_kind(
    open_dataset: Callable[..., CachedDataset], new_student: Callable[[], MobileVLM], golden_folder: Path
) -> None:
    batch = batch_of(open_dataset())
    only = {"attention": 0.0, "vision_all": 0.0, "vision_top": 0.0, "logit": 0.0}
    by_factor = {
        factor: gradients(distilled(new_student(), golden_folder, supervised_on_generated=factor, **only), batch)
        for factor in (0.0, 1.0, 0.25)
    }
    for name, value in by_factor[0.25].items():
        expected = 0.75 * by_factor[0.0][name] + 0.25 * by_factor[1.0][name]
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert any((by_factor[0.0][name] - value).abs().max() > 1e-4 for name, value in by_factor[1.0].items())


def test_factor_one_changes_no_bit(
    open_dataset: Callable[..., CachedDataset], new_student: Callable[[], MobileVLM], golden_folder: Path
) -> None:
    unmarked, marked = batch_of(open_dataset(marks=False)), batch_of(open_dataset())
    assert unmarked.generated_N is None and marked.generated_N is not None
    only = {"attention": 0.0, "vision_all": 0.0, "vision_top": 0.0, "logit": 0.0}
    student = distilled(new_student(), golden_folder, **only)
    found, expected = student(marked), student(unmarked)
    for name, term in expected.items():
        assert torch.equal(found[name].total, term.total) and torch.equal(found[name].parts, term.parts)
    for name, value in gradients(student, unmarked).items():
        assert torch.equal(value, gradients(student, marked)[name])


def test_a_batch_without_such_answers_has_no_marks(open_dataset: Callable[..., CachedDataset]) -> None:
    dataset = open_dataset()
    for position in range(len(dataset)):
        generated = any(turn.get("generated") for turn in dataset[position][1].conversations)
        assert (batch_of(dataset, [position]).generated_N is not None) is generated


def test_two_ranks_and_several_sources_have_the_same_figures(
    stores: dict[str, Path],
    make_job: Callable[..., TrainJob],
    start_child: Any,
    one_thread: None,
    read_metrics: Callable[[Path], list[dict[str, Any]]],
    open_dataset: Callable[..., CachedDataset],
    new_student: Callable[[], MobileVLM],
    golden_folder: Path,
    tmp_path: Path,
) -> None:
    """The first step's figure of one rank with data workers, of two ranks, and by hand of the same four samples."""
    losses = {"supervised_on_generated": 0.3}
    settings: dict[str, Any] = {"steps": 2, "global_batch": 4, "losses": losses}
    alone = make_job(stores["full"], output=tmp_path / "alone", micro_batch=4, data_workers=2, **settings)
    train(alone)
    lines = read_metrics(tmp_path / "alone")
    student = distilled(new_student(), golden_folder, **losses)
    by_hand = student(batch_of(open_dataset()))["supervised"].mean.item()
    assert lines[0]["supervised"] == pytest.approx(by_hand, rel=1e-5)

    two = make_job(stores["full"], output=tmp_path / "two", micro_batch=1, **settings)
    run_two(start_child, two)
    for line, expected in zip(read_metrics(tmp_path / "two"), lines, strict=True):
        assert line["supervised"] == pytest.approx(expected["supervised"], rel=5e-5)

    shutil.copytree(stores["full"], tmp_path / "b")
    pair = (TrainStore(path=stores["full"], name="a"), TrainStore(path=tmp_path / "b", name="b"))
    train(make_job(pair, output=tmp_path / "pair", micro_batch=4, **{**settings, "steps": 1, "global_batch": 8}))
    first = read_metrics(tmp_path / "pair")[0]
    for name in ("a", "b"):
        assert first["by_source"][name]["supervised"] == pytest.approx(by_hand, rel=1e-5)


def test_validation_reports_plain_cross_entropy(
    stores: dict[str, Path], make_job: Callable[..., TrainJob], tmp_path: Path
) -> None:
    """Before the first step, so that both runs validate the same weights."""
    lines: dict[tuple[float, str], dict[str, Any]] = {}
    for factor in (0.0, 1.0):
        output = tmp_path / str(factor)
        validation = {"store": stores["full"], "at_start": True}
        losses = {"supervised_on_generated": factor}
        train(make_job(stores["full"], output=output, steps=1, micro_batch=4, validation=validation, losses=losses))
        for name in (METRICS, VALIDATION):
            lines[factor, name] = json.loads((output / name).read_text().splitlines()[0])
    assert lines[0.0, METRICS]["supervised"] < lines[1.0, METRICS]["supervised"]
    for figure in ("supervised", "loss"):
        expected = pytest.approx(lines[1.0, METRICS][figure], rel=1e-5)
        assert lines[0.0, VALIDATION][figure] == lines[1.0, VALIDATION][figure] == expected


def test_a_resumed_run_keeps_its_factor() -> None:
    name = "losses.supervised_on_generated"
    for found in ({"seed": 0}, {"seed": 0, name: 1.0}):  # the first is of a version without the setting
        check_same_settings(Path("out"), found, {"seed": 0, name: 1.0})
        with pytest.raises(TrainError, match=rf"{name} .*1\.0.* 0\.5"):
            check_same_settings(Path("out"), found, {"seed": 0, name: 0.5})


def test_a_factor_without_a_term_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"supervised_on_generated is 0\.5, but supervised is 0"):
        LossConfig(supervised=0.0, supervised_on_generated=0.5)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        LossConfig(supervised_on_generated=-1)
