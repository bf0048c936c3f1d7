"""Golden tensors of the original implementation, and small stores dumped by hand from the golden teacher.

The stores are written through `storage` and `vlm` directly, so that what the trainer reads does not depend on the
code of the other phase.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nodes.cluster import Node
from numpy.typing import NDArray
from prepared_processes import PreparedProcess, PreparedProcesses
from safetensors.torch import load_file
from torch import Tensor

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, StoreReader, TruncatedLogits, open_writer
from alignkd.storage.record.record import HiddenStates, SampledLogits
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.output import TIMINGS
from alignkd.student_train.stores import TrainStore
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.sample_key import sample_key
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, head_bytes

GOLDEN = Path(__file__).parents[1] / "golden" / "mobilevlm_v2_tiny"
IMAGES = GOLDEN.parent / "images"
CHILD = Path(__file__).parent / "child_process.py"
IN_NODE = Path(__file__).parents[1] / "support" / "in_node.py"
Samples = list[dict[str, Any]]
Dump = Callable[..., Path]


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def images_folder() -> Path:
    return IMAGES


@pytest.fixture(scope="session")
def golden_expected() -> dict[str, dict[str, Any]]:
    """Every loss term by sample id, computed in float64 from the original implementation's outputs."""
    return {entry["id"]: entry for entry in json.loads((GOLDEN / "expected.json").read_text())}


@pytest.fixture(scope="session")
def golden_tensors() -> Callable[[str], dict[str, Tensor]]:
    """The original implementation's tensors of one sample."""
    return lambda sample_id: load_file(GOLDEN / f"{sample_id}.safetensors")


@pytest.fixture(scope="session")
def v1_samples() -> Samples:
    """The golden fine-tuning samples: three with an image, one text-only."""
    samples: Samples = json.loads((GOLDEN / "v1.json").read_text())
    return samples


@pytest.fixture(scope="session")
def teacher() -> MobileVLM:
    return load_model(GOLDEN / "teacher", vision_config=GOLDEN / "clip")


@pytest.fixture(scope="session")
def student_builder() -> MobileVLMPreparation:
    return load_preparation(GOLDEN / "student", template="v1", vision_config=GOLDEN / "clip")


@pytest.fixture
def new_student() -> Callable[[], MobileVLM]:
    return lambda: load_model(GOLDEN / "student", vision_config=GOLDEN / "clip")


@pytest.fixture(scope="session")
def dump(teacher: MobileVLM, student_builder: MobileVLMPreparation) -> Dump:
    """dump(path, samples, ...) writes a store of the golden teacher's targets and returns its path."""

    def write(
        path: Path,
        samples: Samples,
        *,
        codecs: Codecs | None = None,
        fingerprint: dict[str, str] | None = None,
        vocab_size: int = 512,
        backend: Any = "zarr",
        inputs: Any = "reference",
        more: tuple[NamedTarget, ...] = (),
    ) -> Path:
        codecs = codecs or exact_codecs()
        head = {LM_HEAD_FILE: head_bytes(teacher.head)} if codecs.logits.kind == "hidden" else {}
        manifest = Manifest(
            fingerprint={"weights": "golden", **student_builder.fingerprint, **(fingerprint or {})},
            data_fingerprint={"name": path.name},
            shapes=Shapes(num_heads=8, hidden_size=128, vision_tokens=144, vocab_size=vocab_size),
            codecs=codecs,
            more=more,
            backend=backend,
            inputs=inputs,
            attachments={name: hashlib.sha256(content).hexdigest() for name, content in head.items()},
            num_samples=len(samples),
            shard_size=4,
            seed=0,
        )
        writer = open_writer(path, manifest, attachments=head)
        for shard in writer.pending_shards():
            with writer.open_shard(shard) as sink:
                for index in writer.planned_samples(shard):
                    record = _record(teacher, student_builder, samples[index], int(index), codecs, inputs, more)
                    sink.append(record)
                sink.commit()
        return path

    return write


@pytest.fixture(scope="session")
def exact_store(dump: Dump, v1_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden fine-tuning samples, every target in float32, logits in full."""
    return dump(tmp_path_factory.mktemp("stores") / "exact", v1_samples)


@pytest.fixture(scope="session")
def many_samples(v1_samples: Samples) -> Samples:
    """Ten short samples with images and without."""
    questions = ["What is this?", "Is it red?", "How many are there?", "Name a color.", "Where is it?"]
    answers = ["a cup of coffee", "no", "two or three of them", "green", "on the table, to the left"]
    samples: Samples = []
    for number in range(10):
        image = v1_samples[number % 4].get("image")
        question = questions[number % 5] + f" ({number})"
        turns = [("human", ("<image>\n" if image else "") + question), ("gpt", answers[(number * 3) % 5])]
        entry: dict[str, Any] = {"id": f"m-{number}", "conversations": [{"from": f, "value": v} for f, v in turns]}
        samples.append(entry | ({"image": image} if image else {}))
    return samples


@pytest.fixture(scope="session")
def many_store(dump: Dump, many_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples, every target in float32, logits in full."""
    return dump(tmp_path_factory.mktemp("stores") / "many", many_samples)


@pytest.fixture(scope="session")
def truncated_store(dump: Dump, many_samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples with the 20 most probable tokens of each position."""
    codecs = exact_codecs().model_copy(update={"logits": LogitsCodec(kind="topk", top_k=20, dtype="float32")})
    return dump(tmp_path_factory.mktemp("stores") / "truncated", many_samples, codecs=codecs)


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., TrainJob]:
    """make_job(store, **train settings): a short run of the golden student."""

    def make(
        store: Path | tuple[TrainStore, ...],
        *,
        images: Path | None = IMAGES,
        max_tokens: int | None = None,
        dtype: Any = "float32",
        **train: Any,
    ) -> TrainJob:
        defaults: dict[str, Any] = {"output": tmp_path / "out", "steps": 6, "micro_batch": 2, "learning_rate": 1e-3}
        return TrainJob(
            student=GOLDEN / "student",
            vision_config=GOLDEN / "clip",
            images=images,
            store=store,
            max_tokens=max_tokens,
            dtype=dtype,
            train=TrainConfig(**defaults | train),
        )

    return make


@pytest.fixture
def read_metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """The lines of a metrics file without what measures time."""

    def read(output: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]

    return read


@pytest.fixture
def tensorboard_equals_metrics() -> Callable[[Path], None]:
    """Asserts that TensorBoard, reading a run's folder, shows every figure of metrics.jsonl and no other."""
    return _check_tensorboard


@pytest.fixture
def start_child(prepared: PreparedProcesses) -> Iterator[Callable[..., PreparedProcess]]:
    """start_child(job, blow=(module, function, n-th call, signal), **environment) runs `train(job)` elsewhere.

    With `node` it runs on this machine of a cluster of namespaces.
    """
    children: list[PreparedProcess] = []

    def start(
        job: TrainJob, blow: tuple[str, str, int, int] | None = None, *, node: Node | None = None, **options: Any
    ) -> PreparedProcess:
        described = vars(job) | {
            "train": job.train.model_dump(mode="json", exclude_unset=True),
            "trained": job.trained.model_dump(mode="json"),
        }
        if isinstance(job.store, tuple):
            described["store"] = [asdict(store) for store in job.store]
        where = [] if node is None else [IN_NODE, node.pid]
        arguments = (CHILD, json.dumps(described, default=str), json.dumps(blow))
        children.append(prepared.start(*where, *arguments, **options))
        return children[-1]

    yield start
    for child in children:
        child.kill()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bit-for-bit comparison with a child process needs the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def targets_of(teacher: MobileVLM) -> Callable[..., dict[str, Tensor]]:
    """The live teacher's targets of one example, float32."""
    return lambda example, pairs="tqv": _targets(teacher, example, pairs)


@pytest.fixture(scope="session")
def open_store() -> Callable[[Path], StoreReader]:
    return StoreReader


def _check_tensorboard(output: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = {*TERMS, *(name for name in lines[0] if re.fullmatch(r"attention_\d+", name))}
    tags = {name: f"loss/{name}" if name in losses else f"run/{name}" for name in lines[0]} | {"loss": "loss/total"}
    for name, tag in tags.items():
        if name != "step":
            expected = {line["step"]: float(line[name]) for line in lines if line[name] is not None}
            assert shown.pop(tag) == pytest.approx(expected, rel=1e-6), name  # stored as float32
    assert not shown


def exact_codecs() -> Codecs:
    return Codecs(
        attention="float32",
        vision_top="float32",
        vision_all="float32",
        logits=LogitsCodec(kind="full", dtype="float32"),
    )


@torch.no_grad()
def _targets(teacher: MobileVLM, example: Example, pairs: Any) -> dict[str, Tensor]:
    batch = collate_sequences([example])
    vision = teacher.encode_images(batch.images) if batch.images else None
    embeds = teacher.embed(batch, vision)
    hidden = teacher.hidden_states(batch, vision)[0, example.positions.supervised_positions]
    targets = {"logits": teacher.lm_head(hidden), "hidden": hidden}
    if vision is not None:
        rows, cols = (
            torch.from_numpy(p.astype(np.int64))[None]
            for p in (example.positions.attention_rows(pairs), example.positions.attention_cols(pairs))
        )
        tqv_rows = torch.from_numpy(example.positions.tqv_query_positions.astype(np.int64))[None]
        tqv_cols = torch.from_numpy(example.positions.vision_positions.astype(np.int64))[None]
        scores = teacher.first_layer_attention(embeds, tqv_rows, tqv_cols)[0].mean(0).sum(0)
        targets["attention"] = teacher.first_layer_attention(embeds, rows, cols).transpose(1, 2)
        targets["vision_embeddings"] = vision.embeddings_PD
        targets["vision_top_index"] = scores.argsort(descending=True, stable=True)[:16]
        targets["vision_top_embeddings"] = vision.embeddings_PD[targets["vision_top_index"]]
    return targets


_FOUND: dict[Any, dict[str, Tensor]] = {}  # one forward pass per sample, however many stores it goes into


def _record(
    teacher: MobileVLM,
    builder: MobileVLMPreparation,
    sample: dict[str, Any],
    index: int,
    codecs: Codecs,
    inputs: str,
    more: tuple[NamedTarget, ...],
) -> Record:
    images = (sample["image"],) if "image" in sample else ()
    files = tuple((IMAGES / image).read_bytes() for image in images)
    hashes = tuple(hashlib.sha256(file).hexdigest() for file in files)
    turns = [Turn(turn["from"], turn["value"]) for turn in sample["conversations"]]
    example = builder.build(turns, files)
    known = (example.input_ids.tobytes(), hashes, codecs.attention_pairs)
    if known not in _FOUND:
        _FOUND[known] = _targets(teacher, example, codecs.attention_pairs)
    found = _FOUND[known]
    kept: dict[str, Any] = {
        name: np.ascontiguousarray(found[name].numpy().astype(dtype))
        for name, codec, dtype in (
            ("attention", codecs.attention, np.float32),
            ("vision_embeddings", codecs.vision_all, np.float32),
            ("vision_top_embeddings", codecs.vision_top.removeprefix("from_all") or "none", np.float32),
            ("vision_top_index", codecs.vision_top, np.uint16),
        )
        if codec != "none" and name in found
    }
    if "vision_embeddings" in kept:
        kept["vision_embeddings"] = (kept["vision_embeddings"],)
    return Record(
        key=sample_key(sample["conversations"], hashes, "v1:1"),
        id=sample["id"],
        index=index,
        conversations=sample["conversations"],
        images=images,
        image_sha256=hashes,
        input_ids=example.input_ids,
        labels=example.labels,
        vision_positions=example.positions.vision_positions,
        tqv_query_positions=example.positions.tqv_query_positions,
        supervised_positions=example.positions.supervised_positions,
        logits=_stored_logits(found, codecs.logits),
        image_bytes=files if inputs == "embed" else (),
        more={target.name: _attention_of_layers(teacher, example, target) for target in more if images},
        **kept,
    )


@torch.no_grad()
def _attention_of_layers(teacher: MobileVLM, example: Example, target: NamedTarget) -> NDArray[np.float32]:
    """Attention of chosen layers [R, layers * heads, P]; heads in neighbouring groups."""
    batch = collate_sequences([example])
    pairs = "tqv" if target.rows == "tqv_query" else "vqv"
    rows, cols = (
        torch.from_numpy(p.astype(np.int64))[None]
        for p in (example.positions.attention_rows(pairs), example.positions.vision_positions)
    )
    with teacher.watched_layers(target.layers) as layers:
        teacher.hidden_states(batch, teacher.encode_images(batch.images))
    maps = [layers[number].attention(rows, cols)[0] for number in target.layers]  # [H, R, C]
    groups = [values.unflatten(0, (target.heads, -1)).mean(1) for values in maps]
    found: NDArray[np.float32] = torch.cat(groups).transpose(0, 1).contiguous().numpy()
    return found


def _stored_logits(found: dict[str, Tensor], codec: LogitsCodec) -> Any:
    logits_NV = found["logits"]
    if codec.kind == "none":
        return None
    if codec.kind == "full":
        return logits_NV.numpy()
    if codec.kind == "hidden":
        return HiddenStates(states=found["hidden"].numpy())
    logprobs_NV = logits_NV.double().log_softmax(-1)
    if codec.kind == "sampled":
        assert codec.num_draws is not None
        return _sampled(logprobs_NV, codec.num_draws)
    sorted_NV, order_NV = logprobs_NV.sort(descending=True)
    kept_NV = torch.arange(sorted_NV.shape[1]) < _num_kept(sorted_NV, codec)[:, None]
    return TruncatedLogits(
        ids=order_NV[kept_NV].numpy().astype(np.uint16),
        logprobs=sorted_NV[kept_NV].numpy().astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(kept_NV.sum(1).numpy())]).astype(np.int64),
        tail_logmass=sorted_NV.masked_fill(kept_NV, -torch.inf).logsumexp(-1).numpy().astype(np.float32),
    )


def _num_kept(sorted_logprobs_NV: Tensor, codec: LogitsCodec) -> Tensor:
    if codec.kind == "topk":
        return torch.full((len(sorted_logprobs_NV),), codec.top_k)
    assert codec.p is not None
    wanted = (sorted_logprobs_NV.exp().cumsum(-1) < codec.p).sum(-1) + 1
    return wanted.clamp(codec.min_entries, codec.max_entries)


def _sampled(logprobs_NV: Tensor, num_draws: int) -> SampledLogits:
    generator = torch.Generator().manual_seed(0)
    drawn_ND = torch.multinomial(logprobs_NV.exp(), num_draws, replacement=True, generator=generator).numpy()
    found = [np.unique(row, return_counts=True) for row in drawn_ND]
    return SampledLogits(
        ids=np.concatenate([ids for ids, _ in found]).astype(np.uint16),
        counts=np.concatenate([counts for _, counts in found]).astype(np.uint16),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in found)]).astype(np.int64),
        entropy=-(logprobs_NV.exp() * logprobs_NV).sum(-1).numpy().astype(np.float32),
    )
