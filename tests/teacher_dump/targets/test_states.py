"""Targets made of the last hidden states against the live model, in both layouts, batched and alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_data
import tiny_families
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from alignkd.pipeline.cli import main
from alignkd.storage import Record, StoreReader, as_float32, verify_store
from alignkd.storage.schema.targets.vision import stored_relations
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.stats import store_stats
from alignkd.teacher_dump.dump import dump, load_teacher
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, read_head

# the original layout; tiles with text between them; layers that see images again
FAMILIES = ["mobilevlm", "smolvlm", "qwen3_vl"]
NOTHING = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
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
            store=StoreConfig(**{"path": tmp_path / path, "shard_size": 4, **NOTHING, **settings}),
        )

    return make


def records_of(job: DumpJob) -> list[Record]:
    reader = StoreReader(job.store.path)
    return [reader[number] for number in range(len(reader))]


def tree(path: Path | str) -> dict[str, bytes]:
    root = Path(path)
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@torch.no_grad()
def live_passes(
    model: VisionLanguageModel, preparation: Preparation, record: Record, images: Path
) -> tuple[NDArray[np.float32], ...]:
    """Last hidden states [L, Dt], those after layer 1, and the projector's output [P, Dt], of one sample alone."""
    files = [(images / image).read_bytes() for image in record.images]
    batch = collate_sequences([preparation.build(turns_of(record.conversations), files)])
    vision = model.encode_images(batch.images, batch.image_samples_I.tolist()) if batch.images else None
    outputs: list[Any] = []
    handle = model.decoder_layers[1].register_forward_hook(lambda _, inputs, output: outputs.append(output))
    last = model.hidden_states(batch, vision)[0].numpy()
    handle.remove()
    after = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    return last, after[0].numpy(), np.zeros((0, 1), np.float32) if vision is None else vision.embeddings_PD.numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_live_model(family: str, make_job: MakeJob) -> None:
    job = make_job(family, vision_states="float32")
    dump(job)
    assert verify_store(job.store.path, deep=True).ok
    teacher = job.open_teacher()
    model, preparation = load_teacher(job, teacher), teacher.preparation(job.template, max_tokens=4096)
    assert job.data[0].images is not None
    seen = 0
    for record in records_of(job):
        assert ("vision_states" in record.more) == record.has_image
        if record.has_image:
            last, _, _ = live_passes(model, preparation, record, job.data[0].images)
            expected = last[record.vision_positions]
            np.testing.assert_allclose(record.more["vision_states"], expected, rtol=1e-4, atol=2e-5)
            seen += record.num_images > 1
    assert seen > 1
    # the head turns them into the teacher's logits
    reader = StoreReader(job.store.path)
    shapes = reader.manifest.shapes
    head = read_head(reader.attachment(LM_HEAD_FILE), vocab_size=shapes.vocab_size, hidden_size=shapes.hidden_size)
    states = torch.from_numpy(
        np.asarray(records_of(job)[0].more.get("vision_states", np.zeros((1, shapes.hidden_size), np.float32)))
    )
    torch.testing.assert_close(head(states), model.head(states))


@pytest.mark.parametrize("codec", ["bfloat16", "int8_group"])
def test_layouts_batches_and_codecs(codec: str, make_job: MakeJob) -> None:
    exact, whole = make_job("mobilevlm", "exact", vision_states="float32"), make_job("mobilevlm", vision_states=codec)
    single = make_job("mobilevlm", "single", batch=1, vision_states=codec, backend="webdataset")
    for job in (exact, whole, single):
        dump(job)
        assert verify_store(job.store.path, deep=True).ok
    for reference, one, other in zip(records_of(exact), records_of(whole), records_of(single), strict=True):
        assert one.more.keys() == other.more.keys() == reference.more.keys()
        if one.has_image:
            values, found, again = (as_float32(each.more["vision_states"]) for each in (reference, one, other))  # type: ignore[arg-type]
            assert np.linalg.norm(found - values) < 0.01 * np.linalg.norm(values)
            np.testing.assert_allclose(again, found, rtol=0.02, atol=0.02)
    # codecs of the same values differ by what they state
    readers = [StoreReader(job.store.path) for job in (exact, whole)]
    (field,) = (field for field in diff_stores(*readers).fields if field.field == "more.vision_states")
    assert field.beyond == 0 and field.max_abs
    assert "vision_states" in {column.column for column in store_stats(readers[1]).columns}
    shown = CliRunner().invoke(main, ["shards", "show", str(whole.store.path), "--json"])
    assert "vision_states" in shown.output, shown.output
    before = tree(whole.store.path)
    (Path(whole.store.path) / "commits" / "00000001.json").unlink()
    assert dump(whole).shards_written == 1
    assert tree(whole.store.path) == before


def by_loops(states: NDArray[np.float32]) -> list[float]:
    """Cosines of all pairs, row by row of the upper triangle."""
    values = states.astype(np.float64)
    norms = [math.sqrt(sum(value**2 for value in row)) for row in values.tolist()]
    return [
        float(values[a] @ values[b]) / (norms[a] * norms[b])
        for a in range(len(values))
        for b in range(a + 1, len(values))
    ]


@pytest.mark.parametrize("of", ["last_hidden", "projector", "layer_1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_relations_are_those_of_the_live_model(family: str, of: str, make_job: MakeJob) -> None:
    job = make_job(family, vision_relations="float32", relations_of=of, state_norms="float32")
    dump(job)
    assert verify_store(job.store.path, deep=True).ok
    teacher = job.open_teacher()
    model, preparation = load_teacher(job, teacher), teacher.preparation(job.template, max_tokens=4096)
    reader = StoreReader(job.store.path)
    found = stored_relations(reader.manifest)
    assert found is not None and found[1] == of
    assert job.data[0].images is not None
    several = 0
    for record in records_of(job):
        last, after, embeddings = live_passes(model, preparation, record, job.data[0].images)
        np.testing.assert_allclose(
            record.more["state_norms"], np.linalg.norm(last[record.supervised_positions], axis=-1), rtol=1e-4
        )
        states = {"last_hidden": last[record.vision_positions], "projector": embeddings}.get(
            of, after[record.vision_positions]
        )
        parts = np.split(states, np.cumsum(record.tokens_of_image)[:-1]) if record.has_image else []
        expected = [value for part in parts for value in by_loops(part)]
        np.testing.assert_allclose(record.more[found[0]], expected, atol=2e-4)
        several += record.num_images > 1
    assert several > 1


@pytest.mark.parametrize("codec", ["float16", "int8_unit"])
def test_codecs_of_relations_are_within_their_bounds(codec: str, make_job: MakeJob) -> None:
    exact = make_job("mobilevlm", "exact", vision_relations="float32")
    whole = make_job("mobilevlm", vision_relations=codec)
    single = make_job("mobilevlm", "single", batch=1, vision_relations=codec, backend="webdataset")
    for job in (exact, whole, single):
        dump(job)
        assert verify_store(job.store.path, deep=True).ok
    readers = [StoreReader(job.store.path) for job in (exact, whole)]
    (field,) = (field for field in diff_stores(*readers).fields if field.field == "more.vision_relations")
    assert field.beyond == 0 and field.max_abs and field.max_abs < 0.005
    for one, other in zip(records_of(whole), records_of(single), strict=True):
        values, again = (as_float32(each.more["vision_relations"]) for each in (one, other))  # type: ignore[arg-type]
        np.testing.assert_allclose(again, values, atol=0.009)
        assert len(values) == sum(tokens * (tokens - 1) // 2 for tokens in one.tokens_of_image)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"relations_of": "projector"}, "relations_of is 'projector', but vision_relations is 'none'"),
        ({"vision_relations": "float16", "relations_of": "layer_x"}, "found 'layer_x', expected last_hidden"),
        ({"vision_relations": "int8_group"}, "int8_group"),
        ({"state_norms": "int8_group"}, "needs rows of several values"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, str], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        StoreConfig(path=Path("store"), **settings)  # type: ignore[arg-type]


def test_a_layer_that_the_teacher_lacks_is_refused(make_job: MakeJob) -> None:
    job = make_job("mobilevlm", vision_relations="float16", relations_of="layer_99")
    with pytest.raises(ValueError, match=r"relations_of is 'layer_99', but the teacher has \d+ decoder layers"):
        dump(job)
