"""Samples with no, one and several images: cached terms equal those computed live, alone and in any mixture."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, StoreReader, open_writer
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.images import image_hashes, read_images
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.inputs.labels import IMAGE_TOKEN_ID
from alignkd.vlm.inputs.position_map import AttentionPairs
from alignkd.vlm.inputs.sample_key import sample_key

P = 144
EXACT = {"attention": "float32", "vision_top": "float32", "vision_all": "float32"}
COMPACT = {"attention": "sqrt_u8", "vision_top": "from_all", "vision_all": "int8_channel"}
SAMPLES = [
    (["coffee.png", "chelsea.png"], ["Is <image> like <image>?", "no, not at all"]),
    ([], ["Name a color.", "green"]),
    (["rocket.jpg"], ["<image>\nWhat is this?", "a rocket"]),
    (["chelsea.png", "rocket.jpg", "coffee.png"], ["<image><image> cups?", "none", "<image>\nand here?", "one"]),
]
Side = dict[str, Tensor]


@torch.no_grad()
def seen_by(model: MobileVLM, builder: MobileVLMPreparation, sample: Sample, files: Any) -> Side:
    """Everything a loss compares, of one sample, spliced by hand; attention [H, L, L] of the first layer."""
    example = builder.build(sample.turns, files)
    features = [
        model.encode_images([{"pixel_values": torch.from_numpy(image["pixel_values"])}]).embeddings_PD
        for image in example.images
    ]
    images = iter(features)
    embeds_LD = torch.cat(
        [
            next(images) if token == IMAGE_TOKEN_ID else model.model.embed_tokens.weight[token][None]
            for token in example.input_ids.tolist()
        ]
    )
    every = torch.arange(len(embeds_LD))[None]
    hidden = model.decoder_states(embeds_LD[None])[0]
    return {
        "attention": model.first_layer_attention(embeds_LD[None], every, every)[0],
        "vision": torch.cat([*features, torch.zeros(0, model.config.hidden_size)]),
        "logits": model.lm_head(hidden[example.positions.supervised_positions]),
        "labels": torch.from_numpy(example.positions.next_labels).long(),
        "vision_at": torch.from_numpy(example.positions.vision_positions).long(),
    }


def tqv(side: Side) -> Tensor:
    """[H, Q, k * P]"""
    vision_at = side["vision_at"]
    return side["attention"][:, int(vision_at[-1]) + 1 :, vision_at]


def expected_terms(teacher: Side, student: Side, adapters: Adapters) -> dict[str, float]:
    """Eq. 1, 3, 4, 6 and the cross-entropy as the paper writes them, over all vision tokens of the sample at once."""
    logp_t, logp_s = teacher["logits"].log_softmax(-1), student["logits"].log_softmax(-1)
    terms = {
        "supervised": functional.cross_entropy(student["logits"], student["labels"]),
        "logit": (logp_s.exp() * (logp_s - logp_t)).sum(-1).mean(),
    }
    if len(teacher["vision_at"]):
        adapted = adapters.adapt_vision(teacher["vision"])
        focus = tqv(teacher).mean(0).sum(0).argsort(descending=True, stable=True)[:16]
        terms |= {
            "attention": (adapters.adapt_attention(tqv(teacher)[None])[0] - tqv(student)).square().mean(),
            "vision_all": (adapted - student["vision"]).square().mean(),
            "vision_top": (adapted - student["vision"])[focus].square().mean(),
        }
    return {name: float(term) for name, term in terms.items()}


def targets_of(side: Side, pairs: AttentionPairs, k: int, kept: dict[str, str]) -> dict[str, Any]:
    """The record's fields of one sample with images."""
    if not k:
        return {}
    vision_at, length = side["vision_at"], side["attention"].shape[1]
    queries = torch.arange(int(vision_at[-1]) + 1, length)
    text = torch.tensor([place for place in range(length) if place not in set(vision_at.tolist())])
    rows = vision_at if pairs == "vqv" else queries
    columns = [text] if pairs == "tqt" else vision_at.split(P)
    blocks = [side["attention"][:, rows][:, :, cols].transpose(0, 1).numpy().copy() for cols in columns]
    top = tqv(side).mean(0).sum(0).argsort(descending=True, stable=True)[:16]
    every = side["vision"].numpy()
    return {
        "attention": np.stack(blocks),
        "vision_embeddings": tuple(every.reshape(k, P, -1)),
        "vision_top_index": top.numpy().astype(np.uint16),
        "vision_top_embeddings": None if kept["vision_top"] == "from_all" else every[top],
    }


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    made = []
    for number, (images, values) in enumerate(SAMPLES):
        turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
        made.append(sample_of_entry(number, {"id": f"s{number}", "image": images, "conversations": turns}))
    return made


@pytest.fixture(scope="module")
def teacher_sides(
    teacher: MobileVLM, student_builder: MobileVLMPreparation, samples: list[Sample], images_folder: Path
) -> list[Side]:
    return [seen_by(teacher, student_builder, s, read_images(images_folder, s.images)) for s in samples]


@pytest.fixture
def write(
    tmp_path: Path,
    student_builder: MobileVLMPreparation,
    samples: list[Sample],
    teacher_sides: list[Side],
    images_folder: Path,
) -> Callable[..., Path]:
    """write(kept codecs, pairs, inputs, backend): a store of the four samples."""

    def store(
        kept: dict[str, str], pairs: AttentionPairs = "tqv", inputs: Any = "reference", backend: Any = "zarr"
    ) -> Path:
        manifest = Manifest(
            fingerprint={"weights": "golden", **student_builder.fingerprint},
            data_fingerprint={},
            shapes=Shapes(num_heads=8, hidden_size=128, vision_tokens=P, vocab_size=512),
            codecs=Codecs(**kept, attention_pairs=pairs, logits=LogitsCodec(kind="full", dtype="float32")),
            backend=backend,
            inputs=inputs,
            num_samples=len(samples),
            shard_size=4,
            seed=0,
        )
        path = tmp_path / f"{backend}-{inputs}-{pairs}"
        writer = open_writer(path, manifest)
        with writer.open_shard(0) as sink:
            for index in writer.planned_samples(0).tolist():
                sink.append(record(index, kept, pairs, inputs))
            sink.commit()
        return path

    def record(index: int, kept: dict[str, str], pairs: AttentionPairs, inputs: str) -> Record:
        sample, side = samples[index], teacher_sides[index]
        files = read_images(images_folder, sample.images)
        example, hashes = student_builder.build(sample.turns, files), image_hashes(files)
        positions = example.positions
        return Record(
            key=sample_key(sample.conversations(), hashes, "v1:1"),
            id=sample.id,
            index=index,
            conversations=sample.conversations(),
            images=sample.images,
            image_sha256=hashes,
            image_bytes=files if inputs == "embed" else (),
            input_ids=example.input_ids,
            labels=example.labels,
            vision_positions=positions.vision_positions,
            tqv_query_positions=positions.tqv_query_positions,
            supervised_positions=positions.supervised_positions,
            logits=side["logits"].numpy(),
            **targets_of(side, pairs, len(sample.images), kept),
        )

    return store


@pytest.fixture
def student(new_student: Callable[[], MobileVLM], golden_folder: Path) -> DistilledStudent:
    adapters = Adapters(heads=(8, 4), hidden_sizes=(128, 64))
    adapters.load(golden_folder / "adapters.safetensors")
    return DistilledStudent(new_student(), adapters, LossConfig())


def terms_of(student: DistilledStudent, dataset: CachedDataset, places: list[int]) -> dict[str, LossSum]:
    pairs = dataset.reader.manifest.codecs.attention_pairs
    return student(
        collate(
            [dataset[place] for place in places], targets=LossConfig().needed_targets.values(), attention_pairs=pairs
        )
    )  # type: ignore[no-any-return]


def test_cached_terms_equal_live_ones(
    write: Callable[..., Path],
    student: DistilledStudent,
    student_builder: MobileVLMPreparation,
    samples: list[Sample],
    teacher_sides: list[Side],
    images_folder: Path,
) -> None:
    dataset = CachedDataset(StoreReader(write(EXACT)), student_builder, images_folder)
    for place in range(len(samples)):
        sample = samples[int(dataset.reader.dataset_index[place])]
        side = seen_by(student.model, student_builder, sample, read_images(images_folder, sample.images))
        with torch.no_grad():
            expected = expected_terms(teacher_sides[sample.index], side, student.adapters)
            found = terms_of(student, dataset, [place])
        means = {name: term.mean.item() for name, term in found.items() if term.count}
        assert means == pytest.approx(expected, rel=1e-6), sample.id


@pytest.mark.parametrize(
    ("kept", "pairs", "inputs", "backend"),
    [
        (EXACT, "tqv", "reference", "zarr"),
        (COMPACT, "tqv", "embed", "webdataset"),
        (EXACT, "vqv", "embed", "zarr"),
        (EXACT, "tqt", "reference", "webdataset"),
    ],
)
def test_a_mixed_batch_is_the_sum_of_its_samples(
    write: Callable[..., Path],
    student: DistilledStudent,
    student_builder: MobileVLMPreparation,
    images_folder: Path,
    kept: Any,
    pairs: Any,
    inputs: str,
    backend: str,
) -> None:
    reader = StoreReader(write(kept, pairs, inputs, backend))
    dataset = CachedDataset(reader, student_builder, images_folder if inputs == "reference" else None)
    places = list(range(len(reader)))
    with torch.no_grad():
        together = terms_of(student, dataset, places)
        alone = [terms_of(student, dataset, [place]) for place in places]
    expected = GlobalCounts([reader], student.model.config, LossConfig().weights)(np.array(places))
    for name, term in together.items():
        assert term.count == sum(one[name].count for one in alone) == expected[name] > 0, name
        each = [float(one[name].total) for one in alone]
        assert float(term.total) == pytest.approx(sum(each), rel=1e-6), name
        assert term.parts.tolist() == pytest.approx(each, rel=1e-5, abs=1e-6), name


def test_gradients_of_a_mixed_batch_add_up(
    write: Callable[..., Path], student: DistilledStudent, student_builder: MobileVLMPreparation, images_folder: Path
) -> None:
    dataset = CachedDataset(StoreReader(write(EXACT)), student_builder, images_folder)
    names = ("attention", "vision_all", "vision_top")

    def gradient(batches: list[list[int]]) -> Tensor:
        student.zero_grad()
        for places in batches:
            terms = terms_of(student, dataset, places)
            torch.stack([terms[name].total for name in names]).sum().backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])

    together, alone = gradient([[0, 1, 2, 3]]), gradient([[0], [1], [2], [3]])
    assert float((together - alone).norm()) <= 1e-5 * float(alone.norm())


def test_a_changed_second_image_is_named(
    write: Callable[..., Path], student_builder: MobileVLMPreparation, images_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for file in images_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chelsea.png").write_bytes((images_folder / "coffee.png").read_bytes())
    dataset = CachedDataset(StoreReader(write(EXACT)), student_builder, folder)
    [place] = dataset.reader.find(index=0)
    was = hashlib.sha256((images_folder / "chelsea.png").read_bytes()).hexdigest()
    with pytest.raises(SampleError, match=rf"chelsea\.png: sha256 is .*, the teacher saw {was}"):
        dataset[place]
