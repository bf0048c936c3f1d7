"""The same losses whatever the store's codecs, layout or inputs: exactly, or within what each codec states."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alignkd.storage import Codecs, LogitsCodec, StoreReader, open_writer
from alignkd.storage.record.record import EncodedArray, HiddenStates, Record, SampledLogits, TruncatedLogits, as_float32
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.targets import FullTargets, HiddenTargets, SampledTargets, TruncatedTargets
from alignkd.student_train.job import TrainJob
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent, FrozenHead
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import teacher_head
from alignkd.student_train.trainer import train
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

MakeJob = Callable[..., TrainJob]
OpenStore = Callable[..., CachedDataset]
ALL = [0, 1, 2, 3]
STORES: dict[str, dict[str, Any]] = {
    "exact": {"attention": "float16", "vision_all": "bfloat16", "vision_top": "from_all", "logits": ("hidden", {})},
    "compact": {
        "attention": "sqrt_u8",
        "vision_all": "int8_channel",
        "vision_top": "from_all",
        "logits": ("nucleus", {"p": 0.98, "min_entries": 8, "max_entries": 256}),
    },
    "int8": {
        "attention": "bfloat16",
        "vision_all": "float16",
        "vision_top": "int8_channel",
        "logits": ("hidden", {"dtype": "int8_group"}),
    },
    "topk": {
        "attention": "float16",
        "vision_all": "int8_channel",
        "vision_top": "bfloat16",
        "logits": ("topk", {"top_k": 16}),
    },
    "draws": {
        "attention": "none",
        "vision_all": "none",
        "vision_top": "float16",
        "logits": ("sampled", {"num_draws": 300}),
    },
}


def codecs_of(name: str) -> Codecs:
    kind, settings = STORES[name]["logits"]
    return Codecs(**{**STORES[name], "logits": LogitsCodec(kind=kind, **settings)})


@pytest.fixture(scope="module")
def opened(
    dump: Any,
    v1_samples: Any,
    tmp_path_factory: pytest.TempPathFactory,
    student_builder: MobileVLMPreparation,
    images_folder: Path,
) -> OpenStore:
    """opened(codecs, **store settings): the golden samples in such a store, which nobody may change."""
    made: dict[str, Path] = {}

    def open_store(codecs: Codecs, **settings: Any) -> CachedDataset:
        name = f"{codecs!r} {settings}"
        if name not in made:
            path = tmp_path_factory.mktemp("kinds") / "store"
            made[name] = dump(path, v1_samples, codecs=codecs, **settings)
        return CachedDataset(StoreReader(made[name]), student_builder, images_folder)

    return open_store


@pytest.fixture(scope="module")
def exact(exact_store: Path, student_builder: MobileVLMPreparation, images_folder: Path) -> CachedDataset:
    return CachedDataset(StoreReader(exact_store), student_builder, images_folder)


@pytest.fixture
def student(new_student: Callable[[], MobileVLM], golden_folder: Path) -> DistilledStudent:
    adapters = Adapters(heads=(8, 4), hidden_sizes=(128, 64))
    adapters.load(golden_folder / "adapters.safetensors")
    return DistilledStudent(new_student(), adapters, LossConfig())


def terms_of(
    student: DistilledStudent, dataset: CachedDataset, positions: list[int], **losses: Any
) -> dict[str, LossSum]:
    weights = {
        name: 0.0 for name in ("attention", "vision_all") if getattr(dataset.reader.manifest.codecs, name) == "none"
    }
    student.losses = LossConfig(**weights, **losses)
    head = teacher_head(dataset.reader, student.losses)
    student.teacher_head = None if head is None else FrozenHead(head)
    batch = collate(
        [dataset[i] for i in positions], targets=student.losses.needed_targets.values(), attention_pairs="tqv"
    )
    with torch.no_grad():
        return student(batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", STORES)
def test_batches_carry_stored_bytes_which_decode_to_the_hosts_values(name: str, opened: OpenStore) -> None:
    """Every target of every sample, text-only ones among them, through padding, stacking and the device's decoding."""
    dataset = opened(codecs_of(name))
    samples = [dataset[i] for i in ALL]
    records = [record for _, record in samples]
    batch = collate(
        samples,
        targets=[t for t in LossConfig().needed_targets.values() if STORES[name].get(t) != "none"],
        attention_pairs="tqv",
    )
    with_image = [record for record in records if record.has_image]
    assert len(with_image) == 3
    if batch.attention is not None and STORES[name]["attention"] != "none":
        assert same_dtypes(batch.attention.coded_BRHC, with_image[0].attention)
        padded_BHRC = batch.attention.teacher_BHRC.float().numpy()
        for record, padded in zip(records, padded_BHRC, strict=True):
            rows = 0 if record.attention is None else record.attention.shape[1]
            assert not padded[:, rows:].any()
            if record.attention is not None:
                np.testing.assert_array_equal(padded[:, :rows].transpose(1, 0, 2), as_float32(record.attention)[0])
    for coded, field in (
        (batch.vision_all_PD, "vision_embeddings"),
        (batch.vision_top_embeddings_KD, "vision_top_embeddings"),
    ):
        if coded is not None:
            kept = [one_of(record, field) for record in with_image]
            assert same_dtypes(coded, kept[0])
            width = coded.shape[-1]
            expected = np.concatenate([as_float32(k).reshape(-1, width) for k in kept])
            np.testing.assert_array_equal(coded.decode().float().numpy(), expected)
    check_logits(batch.logits, records)


def one_of(record: Record, field: str) -> Any:
    """A target of a sample with one image."""
    found = getattr(record, field)
    return found[0] if isinstance(found, tuple) else found


def same_dtypes(coded: EncodedTensor, kept: Any) -> bool:
    parts = kept.parts if isinstance(kept, EncodedArray) else {"": kept}
    return {name: part.numpy().dtype for name, part in coded.parts.items()} == {n: p.dtype for n, p in parts.items()}


def check_logits(targets: Any, records: list[Record]) -> None:
    kept = [record.logits for record in records]
    if isinstance(kept[0], HiddenStates):
        assert isinstance(targets, HiddenTargets) and same_dtypes(targets.states, kept[0].states)
        states = np.concatenate([as_float32(logits.states) for logits in kept])
        np.testing.assert_array_equal(targets.states.decode().float().numpy(), states)
    elif isinstance(kept[0], TruncatedLogits | SampledLogits):
        assert isinstance(targets, TruncatedTargets | SampledTargets)
        assert targets.entries.ids_E.dtype == torch.uint16
        ids_NK, values_NK, kept_NK = targets.entries.padded()
        values = [logits.logprobs if isinstance(logits, TruncatedLogits) else logits.counts for logits in kept]
        np.testing.assert_array_equal(ids_NK[kept_NK].numpy(), np.concatenate([logits.ids for logits in kept]))
        np.testing.assert_array_equal(values_NK[kept_NK].numpy(), np.concatenate(values))
        np.testing.assert_array_equal(kept_NK.sum(1).numpy(), np.concatenate([np.diff(k.offsets) for k in kept]))
        assert not ids_NK[~kept_NK].any() and not values_NK[~kept_NK].any()
    else:
        assert isinstance(targets, FullTargets)


@pytest.mark.parametrize("name", ["exact", "compact", "int8", "topk"])
def test_terms_are_those_of_the_live_teacher_within_the_codecs_bounds(
    name: str, opened: OpenStore, exact: CachedDataset, student: DistilledStudent
) -> None:
    """Targets of `exact` are the live teacher's to 1e-6. Squared errors are squared distances, so the triangle
    inequality turns a bound on the targets into one on their square root; KL moves by at most the largest change of a
    log-probability.
    """
    dataset = opened(codecs_of(name))
    for position in ALL:
        (record,), (true,) = ([store[position][1]] for store in (dataset, exact))
        assert record.id == true.id
        found, expected = (terms_of(student, store, [position]) for store in (dataset, exact))
        assert found["supervised"].total == expected["supervised"].total
        if record.has_image:
            assert not np.array_equal(as_float32(one_of(record, "vision_embeddings")), true.vision_embeddings[0])
            weight_sd = student.adapters.attn_adapter.weight[:, :, 0, 0].abs().detach().numpy()
            moved = np.einsum("st,rtc->src", weight_sd, bound(record.attention, as_float32(true.attention))[0])
            assert_near(found["attention"], expected["attention"], moved)
            weight_ds = student.adapters.proj_adapter.weight[:, :, 0].abs().detach().numpy()
            for term, field in (("vision_all", "vision_embeddings"), ("vision_top", "vision_top_embeddings")):
                moved = bound(one_of(record, field), as_float32(one_of(true, field))) @ weight_ds.T
                assert_near(found[term], expected[term], moved)
        if isinstance(record.logits, HiddenStates):
            shift_N = hidden_shift(dataset, record.logits, true)
            assert abs(found["logit"].total - expected["logit"].total) <= 1.001 * 2 * shift_N.sum() + 1e-4


def assert_near(found: LossSum, expected: LossSum, moved: NDArray[Any]) -> None:
    distance = abs(found.total.sqrt() - expected.total.sqrt()).item()
    assert distance <= 1.001 * np.linalg.norm(moved) + 1e-5 * expected.total.sqrt().item()


def bound(stored: Any, exact: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the codec's docstring allows each value to be off."""
    x = exact.astype(np.float64)
    if not isinstance(stored, EncodedArray):
        return np.maximum(np.abs(x) * 2.0**-11, 2.0**-25)
    if stored.codec == "bfloat16":
        return np.maximum(np.abs(x) * 2.0**-8, 2.0**-134)
    scale = stored.parts["scale"].astype(np.float64)
    if stored.codec == "sqrt_u8":
        scale = scale[..., None]
        return 1.0001 * scale * (np.sqrt(x / scale) / 255 + 1 / (4 * 255**2))
    if stored.codec == "int8_channel":
        return np.broadcast_to(0.50001 * scale, x.shape)
    assert stored.codec == "int8_group"
    return 0.50001 * np.repeat(scale, 64, axis=-1)[..., : x.shape[-1]]


def hidden_shift(dataset: CachedDataset, logits: HiddenStates, true: Record) -> NDArray[np.float64]:
    """Most that a logit of each position may be off."""
    head = teacher_head(dataset.reader, LossConfig())
    assert head is not None and isinstance(true.logits, np.ndarray)
    weight_VD = head.weight_VD.double()
    states = np.linalg.lstsq(weight_VD.numpy(), true.logits.astype(np.float64).T, rcond=None)[0].T
    return (bound(logits.states, states.astype(np.float32)) @ weight_VD.abs().numpy().T).max(axis=1)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_hidden_states_in_float32_equal_full_logits(
    divergence: str, temperature: float, opened: OpenStore, exact: CachedDataset, student: DistilledStudent
) -> None:
    dataset = opened(Codecs(logits=LogitsCodec(kind="hidden", dtype="float32")))
    settings = {"logit_divergence": divergence, "temperature": temperature}
    for positions in ([0], [2], ALL):
        found, expected = (terms_of(student, store, positions, **settings)["logit"] for store in (dataset, exact))
        assert found.count == expected.count
        assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-6)


@pytest.mark.parametrize(
    "logits",
    [
        LogitsCodec(kind="topk", top_k=512, dtype="float32"),
        LogitsCodec(kind="nucleus", p=1.0, min_entries=512, max_entries=512, dtype="float32"),
    ],
)
def test_keeping_every_token_equals_full_logits(
    logits: LogitsCodec, opened: OpenStore, exact: CachedDataset, student: DistilledStudent
) -> None:
    dataset = opened(Codecs(logits=logits))
    for divergence in ("reverse_kl", "forward_kl"):
        found, expected = (
            terms_of(student, store, ALL, logit_divergence=divergence)["logit"] for store in (dataset, exact)
        )
        assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-5)


def test_draws_estimate_the_forward_divergence(
    opened: OpenStore, exact: CachedDataset, student: DistilledStudent
) -> None:
    found, expected = (
        terms_of(student, store, ALL, logit_divergence="forward_kl")["logit"]
        for store in (opened(codecs_of("draws")), exact)
    )
    assert found.mean.item() == pytest.approx(expected.mean.item(), rel=0.05)
    assert found.total != expected.total


@pytest.mark.parametrize("name", STORES)
def test_counts_from_the_index_equal_counts_from_batches(
    name: str, opened: OpenStore, student: DistilledStudent
) -> None:
    dataset = opened(codecs_of(name))
    text_only = dataset.reader.find(id="ft-2")
    for positions in (text_only, [0], [1, 3], ALL):
        terms = terms_of(student, dataset, positions, logit_divergence="forward_kl")
        counts = GlobalCounts([dataset.reader], student.model.config, terms)
        assert {term: found.count for term, found in terms.items()} == counts(np.array(positions))
        assert all(found.total.isfinite() for found in terms.values())


@pytest.fixture
def results(make_job: MakeJob, read_metrics: Any, tmp_path: Path) -> Callable[..., tuple[Any, bytes, bytes]]:
    """results(store, ...): what a short training run leaves: metrics, student and adapters."""

    def run(store: Path, **settings: Any) -> tuple[Any, bytes, bytes]:
        output = tmp_path / f"out-{store.parent.name}-{store.name}"
        result = train(make_job(store, output=output, steps=3, micro_batch=4, **settings))
        assert result.student is not None and result.adapters is not None
        return read_metrics(output), (result.student / "model.safetensors").read_bytes(), result.adapters.read_bytes()

    return run


@pytest.mark.parametrize("name", ["exact", "compact"])
def test_training_from_webdataset_is_training_from_zarr(
    name: str, opened: OpenStore, results: Any, one_thread: None
) -> None:
    """With embedded images on one side: no image folder is looked at."""
    zarr = opened(codecs_of(name)).reader.path
    tar = opened(codecs_of(name), backend="webdataset", inputs="embed").reader.path
    assert results(zarr) == results(tar, images=None)


def test_embedded_images_train_as_referenced_ones(opened: OpenStore, results: Any, one_thread: None) -> None:
    reference, embed = (opened(codecs_of("compact"), inputs=inputs).reader.path for inputs in ("reference", "embed"))
    assert results(reference) == results(embed, images=None)


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_flipped_bit_of_an_embedded_image_is_found(
    backend: str, opened: OpenStore, make_job: MakeJob, tmp_path: Path
) -> None:
    sound = opened(codecs_of("compact"), backend=backend, inputs="embed").reader.path
    path = Path(shutil.copytree(sound, tmp_path / "store"))
    ((image,),) = {
        record.image_bytes for record in map(StoreReader(path).__getitem__, ALL) if record.images == ("coffee.png",)
    }
    for file in sorted((path / "shards").rglob("*")):
        if file.is_file() and (at := (data := bytearray(file.read_bytes())).find(image[1000:1100])) >= 0:
            data[at] ^= 1
            file.write_bytes(data)
    job = make_job(path, images=None)
    dataset = open_samples(job, job.open_student())
    with pytest.raises(ValueError, match="shard 0"):
        _ = [dataset[i] for i in ALL]


def test_an_embedded_image_that_is_not_the_teachers_is_found(
    opened: OpenStore, make_job: MakeJob, images_folder: Path, tmp_path: Path
) -> None:
    """Checksums all right, as of one who wrote the store anew: the sha256 that the teacher noted still tells."""
    reader = opened(codecs_of("compact"), inputs="embed").reader
    other = (images_folder / "chelsea.png").read_bytes()
    writer = open_writer(tmp_path / "forged", reader.manifest)
    with writer.open_shard(0) as sink:
        for index in writer.planned_samples(0):
            record = reader[reader.find(index=int(index))[0]]
            forged = {"image_bytes": (other,)} if record.images == ("coffee.png",) else {}
            sink.append(Record.trusted(vars(record) | forged))
        sink.commit()
    job = make_job(tmp_path / "forged", images=None)
    dataset = open_samples(job, job.open_student())
    with pytest.raises(ValueError, match=r"image coffee\.png: sha256 is [0-9a-f]{64}, the teacher saw [0-9a-f]{64}"):
        dataset[dataset.reader.find(id="ft-0")[0]]
