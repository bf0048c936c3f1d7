"""The counterfactual pass against plain loops over the model's own methods, and the bytes of a resumed store."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_data
import tiny_families
import torch
from counterfactual_passes import focus_tokens, logprobs_without
from torch import Tensor

from alignkd.storage import Record, StoreReader, TruncatedLogits, verify_store
from alignkd.storage.schema.targets.counterfactual import removed_part
from alignkd.teacher_dump.dump import dump, load_teacher
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.teacher_dump.targets.counterfactual import union_of_nuclei
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.inputs.examples import Preparation

# the original layout; tiles; layers that see images again, with features for each vision token
FAMILIES = ["mobilevlm", "smolvlm", "qwen3_vl"]
EXACT = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "full"}}
MakeJob = Callable[..., DumpJob]


@pytest.fixture(scope="module")
def checkpoints(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TeacherConfig]:
    built: dict[str, TeacherConfig] = {}

    def of(family: str) -> TeacherConfig:
        if family not in built:
            if family == "mobilevlm":
                folder, tower = golden / "teacher", golden / "clip"
            else:
                folder, tower = tiny_families.build(family, tmp_path_factory.mktemp("teacher") / family, seed=1), None
            built[family] = TeacherConfig(checkpoint=str(folder), vision_config=tower, batch=3, sanity="off")
        return built[family]

    return of


@pytest.fixture
def make_job(checkpoints: Callable[[str], TeacherConfig], tmp_path: Path) -> MakeJob:
    data = tiny_data.write(tmp_path)

    def make(family: str, path: str = "store", batch: int = 3, **settings: Any) -> DumpJob:
        return DumpJob(
            data=(DataSet(path=data.conversations, images=data.images),),
            template="v1" if family == "mobilevlm" else None,
            max_tokens=4096,
            teacher=checkpoints(family).model_copy(update={"batch": batch}),
            store=StoreConfig(**{"path": tmp_path / path, "shard_size": 4, **EXACT, **settings}),
        )

    return make


def records_of(job: DumpJob) -> list[Record]:
    reader = StoreReader(job.store.path)
    return [reader[number] for number in range(len(reader))]


def tree(path: Path | str) -> dict[str, bytes]:
    root = Path(path)
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@torch.no_grad()
def live(
    model: VisionLanguageModel, preparation: Preparation, record: Record, images: Path, share: float | None
) -> dict[str, Tensor]:
    """Log-probabilities [N, V] of both passes over one sample, and the replaced tokens."""
    example = preparation.build(
        turns_of(record.conversations), [(images / image).read_bytes() for image in record.images]
    )
    num_vision = len(example.positions.vision_positions)
    chosen = list(range(num_vision)) if share is None else focus_tokens(model, example, share)
    tokens = min(preparation.num_tokens, model.config.vocab_size)
    full, removed = (logprobs_without(model, example, which, tokens) for which in ([], chosen))
    labels = torch.tensor(example.positions.next_labels.tolist())
    evidence = torch.zeros(num_vision)
    evidence[chosen] = 1
    advantage = (full - removed).gather(1, labels[:, None])[:, 0]
    return {"full": full, "removed": removed, "advantage": advantage, "evidence": evidence}


@pytest.mark.parametrize("remove", ["focus", "image"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_passes_are_those_of_the_model(family: str, remove: str, make_job: MakeJob) -> None:
    settings = {"remove": remove, "entries": 40, **({"share": 0.3} if remove == "focus" else {})}
    job = make_job(family, counterfactual=settings)
    dump(job)
    assert verify_store(job.store.path, deep=True).ok
    teacher = job.open_teacher()
    model, preparation = load_teacher(job, teacher), teacher.preparation(job.template, max_tokens=4096)
    assert removed_part(StoreReader(job.store.path).manifest) == remove
    assert job.data[0].images is not None
    seen = 0
    for record in records_of(job):
        if not record.has_image:
            assert record.more.keys() == {"sequence_logprob"}
            continue
        expected = live(model, preparation, record, job.data[0].images, 0.3 if remove == "focus" else None)
        np.testing.assert_allclose(record.more["visual_advantage"], expected["advantage"], rtol=1e-3, atol=1e-4)
        if remove == "focus":
            np.testing.assert_array_equal(record.more["evidence"], expected["evidence"])
        full, removed = record.more["counterfactual_full"], record.more["counterfactual_removed"]
        assert isinstance(full, TruncatedLogits) and isinstance(removed, TruncatedLogits)
        np.testing.assert_array_equal(full.ids, removed.ids)
        np.testing.assert_array_equal(full.offsets, removed.offsets)
        for position, (start, end) in enumerate(zip(full.offsets[:-1], full.offsets[1:], strict=True)):
            ids = full.ids[start:end].astype(int).tolist()
            assert len(set(ids)) == len(ids) <= 40
            for stored, name in ((full, "full"), (removed, "removed")):
                row = expected[name][position].double()
                np.testing.assert_allclose(stored.logprobs[start:end], row[ids], rtol=1e-3, atol=1e-3)
                rest = 1 - row[ids].exp().sum().item()
                assert stored.tail_logmass is not None
                assert math.isclose(math.exp(stored.tail_logmass[position]), rest, abs_tol=1e-5)
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_batches_change_nothing_and_a_resumed_store_is_an_unbroken_one(backend: str, make_job: MakeJob) -> None:
    whole = make_job("mobilevlm", counterfactual={"remove": "focus"}, backend=backend)
    dump(whole)
    before = tree(whole.store.path)
    single = make_job("mobilevlm", "single", batch=1, counterfactual={"remove": "focus"})
    dump(single)
    for one, other in zip(records_of(whole), records_of(single), strict=True):
        assert one.more.keys() == other.more.keys()
        if one.has_image:
            np.testing.assert_array_equal(one.more["evidence"], other.more["evidence"])
            np.testing.assert_allclose(one.more["visual_advantage"], other.more["visual_advantage"], atol=1e-3)
    (Path(whole.store.path) / "commits" / "00000001.json").unlink()
    assert dump(whole).shards_written == 1
    assert tree(whole.store.path) == before


def test_all_entries_are_the_whole_distribution(make_job: MakeJob) -> None:
    job = make_job("mobilevlm", counterfactual={"remove": "image", "entries": 512, "mass": 1.0})
    dump(job)
    for record in records_of(job):
        if record.has_image:
            for name in ("counterfactual_full", "counterfactual_removed"):
                stored = record.more[name]
                assert isinstance(stored, TruncatedLogits) and stored.tail_logmass is not None
                assert (np.diff(stored.offsets) == 512).all() and np.isneginf(stored.tail_logmass).all()
            full, logits = record.more["counterfactual_full"], record.logits
            assert isinstance(full, TruncatedLogits) and isinstance(logits, np.ndarray)
            expected = torch.from_numpy(logits).log_softmax(-1).numpy()
            for position in range(full.num_positions):
                entries = slice(full.offsets[position], full.offsets[position + 1])
                by_id = full.logprobs[entries][np.argsort(full.ids[entries])]
                np.testing.assert_allclose(by_id, expected[position], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mass", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("entries", [3, 7, 20])
def test_union_of_nuclei_by_loops(entries: int, mass: float) -> None:
    random = torch.Generator().manual_seed(0)
    full, removed = (torch.randn(30, 20, generator=random).mul(2).log_softmax(-1) for _ in range(2))
    ids, kept = union_of_nuclei(full, removed, entries, mass)
    for position in range(30):
        union: set[int] = set()
        for logprobs in (full[position], removed[position]):
            covered = 0.0
            for token in logprobs.argsort(descending=True).tolist()[:entries]:
                if covered >= mass < 1:
                    break
                union.add(token)
                covered += logprobs[token].exp().item()
        best = sorted(union, key=lambda token: -max(full[position, token], removed[position, token]))[:entries]
        assert ids[position][kept[position]].tolist() == best


def test_other_settings_are_another_store(make_job: MakeJob) -> None:
    dump(make_job("mobilevlm", counterfactual={"remove": "focus", "share": 0.25}))
    with pytest.raises(ValueError, match="counterfactual"):
        dump(make_job("mobilevlm", counterfactual={"remove": "focus", "share": 0.5}))


def test_image_takes_no_share() -> None:
    with pytest.raises(ValueError, match="remove 'image' replaces every vision token; leave share out"):
        StoreConfig(path=Path("store"), counterfactual={"remove": "image", "share": 0.5})
