"""The whole objective on stored targets: against the golden values, and batches against their samples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.storage import Codecs, LogitsCodec, StoreReader
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

NewStudent = Callable[[], MobileVLM]


def distilled(model: MobileVLM, folder: Path, losses: LossConfig | None = None) -> DistilledStudent:
    adapters = Adapters(heads=(8, 4), hidden_sizes=(128, 64))
    adapters.load(folder / "adapters.safetensors")
    return DistilledStudent(model, adapters, losses or LossConfig())


@pytest.fixture
def dataset(exact_store: Path, student_builder: MobileVLMPreparation, images_folder: Path) -> CachedDataset:
    return CachedDataset(StoreReader(exact_store), student_builder, images_folder)


def terms_of(student: DistilledStudent, dataset: CachedDataset, positions: list[int]) -> dict[str, LossSum]:
    pairs = dataset.reader.manifest.codecs.attention_pairs
    return student(
        collate([dataset[i] for i in positions], targets=LossConfig().needed_targets.values(), attention_pairs=pairs)
    )  # type: ignore[no-any-return]


def test_every_term_equals_the_golden_value(
    dataset: CachedDataset, golden_folder: Path, golden_expected: dict[str, Any], new_student: NewStudent
) -> None:
    """Tokens, pixels, position map, student and teacher forward, store, collation and losses in one."""
    student = distilled(new_student(), golden_folder)
    names = {
        "supervised": "student_ce",
        "logit": "reverse_kl",
        "attention": "attention_mse",
        "vision_all": "vision_all_mse",
        "vision_top": "vision_focus_mse",
    }
    for position, sample_id in enumerate(dataset.reader.ids):
        terms = terms_of(student, dataset, [position])
        for term, name in names.items():
            if name in golden_expected[sample_id]:
                assert terms[term].mean.item() == pytest.approx(golden_expected[sample_id][name], rel=1e-5), term
            else:
                assert terms[term].count == 0
                assert terms[term].total.item() == 0.0


def test_batch_is_the_sum_of_its_samples(dataset: CachedDataset, golden_folder: Path, new_student: NewStudent) -> None:
    """Padding changes no term and no gradient."""
    student = distilled(new_student(), golden_folder)
    counts = GlobalCounts([dataset.reader], student.model.config, LossConfig().weights)(
        torch.arange(len(dataset)).numpy()
    )
    weights = student.losses.weights

    batch = terms_of(student, dataset, list(range(len(dataset))))
    weighted_total(batch, weights, counts).backward()
    together = {name: value.grad.clone() for name, value in student.named_parameters() if value.grad is not None}
    student.zero_grad()
    singles = [terms_of(student, dataset, [position]) for position in range(len(dataset))]
    for single in singles:
        weighted_total(single, weights, counts).backward()

    for term in LossConfig().weights:
        assert batch[term].count == sum(single[term].count for single in singles) == counts[term]
        torch.testing.assert_close(
            batch[term].total, torch.stack([single[term].total for single in singles]).sum(), rtol=1e-5, atol=1e-6
        )
        each = torch.stack([single[term].total for single in singles]).detach()
        torch.testing.assert_close(batch[term].parts, each, rtol=1e-4, atol=1e-6)
        assert not batch[term].parts.requires_grad
    for name, value in student.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(value.grad, together[name], rtol=1e-3, atol=2e-6, msg=name)


def test_every_trained_parameter_gets_a_gradient_from_every_batch(
    dataset: CachedDataset, golden_folder: Path, new_student: NewStudent
) -> None:
    """Also from a text-only one, and in the same order: ZeRO-2 packs gradients in the order of arrival."""
    student = distilled(new_student(), golden_folder)
    orders = []
    for sample_id in ("ft-0", "ft-2"):
        arrived: list[str] = []
        hooks = [
            value.register_post_accumulate_grad_hook(lambda _, name=name, arrived=arrived: arrived.append(name))
            for name, value in student.named_parameters()
            if value.requires_grad
        ]
        terms = terms_of(student, dataset, dataset.reader.find(id=sample_id))
        weighted_total(terms, student.losses.weights, dict.fromkeys(LossConfig().weights, 1)).backward()
        for hook in hooks:
            hook.remove()
        orders.append(arrived)
    assert orders[0] == orders[1]
    assert set(orders[0]) == {name for name, value in student.named_parameters() if value.requires_grad}


def test_the_vision_tower_is_frozen(golden_folder: Path, new_student: NewStudent) -> None:
    student = distilled(new_student(), golden_folder)
    frozen = {name for name, value in student.named_parameters() if not value.requires_grad}
    assert frozen == {f"model.model.vision_tower.{n}" for n, _ in student.model.model.vision_tower.named_parameters()}


@pytest.mark.parametrize("off", ["attention", "vision_all", "vision_top", "logit", "supervised"])
def test_a_term_of_weight_zero_is_not_computed(
    off: str, dataset: CachedDataset, golden_folder: Path, new_student: NewStudent
) -> None:
    losses = LossConfig(**{off: 0.0})
    student = distilled(new_student(), golden_folder, losses)
    batch = collate([dataset[0]], targets=losses.needed_targets.values(), attention_pairs="tqv")
    assert set(student(batch)) == {*LossConfig().weights} - {off}


def test_an_adapter_without_a_loss_is_not_trained(golden_folder: Path, new_student: NewStudent) -> None:
    student = distilled(new_student(), golden_folder, LossConfig(attention=0.0, vision_all=0.0, vision_top=0.0))
    assert not any(value.requires_grad for value in student.adapters.parameters())


@pytest.mark.parametrize("pairs", ["tqv", "tqt", "vqv"])
def test_counts_from_the_index_equal_counts_from_batches(
    pairs: Any,
    dump: Any,
    v1_samples: Any,
    tmp_path: Path,
    student_builder: MobileVLMPreparation,
    images_folder: Path,
    golden_folder: Path,
    new_student: NewStudent,
) -> None:
    codecs = Codecs(attention="float16", attention_pairs=pairs, logits=LogitsCodec(kind="topk", top_k=8))
    reader = StoreReader(dump(tmp_path / "store", v1_samples, codecs=codecs))
    dataset = CachedDataset(reader, student_builder, images_folder)
    student = distilled(new_student(), golden_folder)
    counts = GlobalCounts([reader], student.model.config, LossConfig().weights)
    for positions in ([0], [1, 3], [0, 1, 2, 3]):
        terms = terms_of(student, dataset, positions)
        assert {name: term.count for name, term in terms.items()} == counts(torch.tensor(positions).numpy())
    assert counts(torch.tensor(reader.find(id="ft-2")).numpy())["attention"] == 0


def test_truncated_logits_approach_the_full_ones(
    dump: Any,
    v1_samples: Any,
    tmp_path: Path,
    student_builder: MobileVLMPreparation,
    images_folder: Path,
    golden_folder: Path,
    new_student: NewStudent,
    dataset: CachedDataset,
) -> None:
    student = distilled(new_student(), golden_folder)
    full = {dataset.reader.ids[i]: terms_of(student, dataset, [i])["logit"].total.item() for i in range(4)}
    values = []
    for top_k in (4, 64, 512):
        codecs = Codecs(logits=LogitsCodec(kind="topk", top_k=top_k, dtype="float32"))
        reader = StoreReader(dump(tmp_path / f"store-{top_k}", v1_samples, codecs=codecs))
        truncated = CachedDataset(reader, student_builder, images_folder)
        values.append({reader.ids[i]: terms_of(student, truncated, [i])["logit"].total.item() for i in range(4)})
    for sample_id, exact in full.items():
        # By the chain rule of KL a coarser partition of the outcomes can only lower the divergence.
        assert values[0][sample_id] < values[1][sample_id] < values[2][sample_id]
        assert values[2][sample_id] == pytest.approx(exact, rel=1e-5)
