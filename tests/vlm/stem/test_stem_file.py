"""Stem files: extracted from any layout of a checkpoint, identical when opened, refused when they do not belong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared_processes import PreparedProcesses
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint, load_model
from alignkd.vlm.families.mobilevlm.weights.sources import TOWER_PREFIX
from alignkd.vlm.families.mobilevlm.weights.tower_hash import running_tower_hash, tower_hashes
from alignkd.vlm.families.mobilevlm.weights.writer import write_weights
from alignkd.vlm.stem.checks import check_same_tower, check_stem_of_teacher
from alignkd.vlm.stem.extract import extract_stem
from alignkd.vlm.stem.file import METADATA_KEY, StemInfo, open_stem, read_stem_info
from alignkd.vlm.stem.stem import EMBEDDING_KEY, stem_shapes
from alignkd.vlm.weights.files import read_weights

Extract = Callable[..., StemInfo]


@pytest.fixture
def extract(golden: Path, tmp_path: Path) -> Extract:
    """extract(checkpoint, dtype=, lm_head=): the golden teacher's stem by default."""

    def run(checkpoint: Path | None = None, *, name: str = "stem.safetensors", **settings: Any) -> StemInfo:
        opened = MobileVLMCheckpoint.open(checkpoint or golden / "teacher", vision_config=golden / "clip")
        return extract_stem(opened, tmp_path / name, **{"dtype": torch.float32, **settings})

    return run


@pytest.fixture
def teacher_copy(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "teacher", tmp_path / "teacher"))


@pytest.mark.parametrize("lm_head", [False, True])
@pytest.mark.parametrize(("dtype", "depth"), [(torch.float32, None), (torch.bfloat16, 3), (torch.float16, 2)])
def test_a_file_holds_the_checkpoints_tensors_and_no_others(
    extract: Extract, golden: Path, dtype: torch.dtype, depth: int | None, lm_head: bool
) -> None:
    info, state = extract(dtype=dtype, lm_head=lm_head, depth=depth), read_weights(golden / "teacher")
    found = load_file(info.path)
    assert info.depth == (depth or 1)
    assert found.keys() == stem_shapes(info.config, lm_head=lm_head, depth=info.depth).keys()
    assert {key for key in found if ".layers." in key and ".mlp." in key} == {
        key for key in state for number in range(info.depth - 1) if f"model.layers.{number}.mlp." in key
    }
    assert all(torch.equal(tensor, state[key].to(dtype)) for key, tensor in found.items())
    stem = open_stem(info.path)
    assert stem.depth == info.depth
    opened = dict(stem.named_buffers())
    assert all(torch.equal(opened[key], tensor) for key, tensor in found.items() if key != EMBEDDING_KEY)
    ids = torch.arange(512)[None]
    rows = stem.table.rows(ids)
    assert torch.equal(rows.rows_UD[rows.index_BL][0], found[EMBEDDING_KEY])
    assert (stem.lm_head is not None) == info.has_lm_head == lm_head
    assert open_stem(info.path, lm_head=False).lm_head is None
    assert sum(tensor.nbytes for tensor in found.values()) == info.sizes.total
    assert info.sizes.total < info.file_bytes < info.sizes.total + (1 << 16)
    live = load_config(golden / "teacher", vision_config=golden / "clip")
    assert stem.config.llama.to_dict() == live.llama.to_dict()
    assert stem.config.vision.to_dict() == live.vision.to_dict() and stem.config.raw == live.raw


def test_single_sharded_and_pickled_checkpoints_give_the_same_stem(
    extract: Extract, teacher_copy: Path, tmp_path: Path
) -> None:
    first = extract(name="bin.safetensors")
    weights = read_weights(teacher_copy)
    (teacher_copy / "pytorch_model.bin").unlink()
    for limit in (1 << 40, 100_000):
        files = write_weights(weights, teacher_copy, dtype=None, max_shard_bytes=limit)
        assert (len(files) > 1) == (limit == 100_000)
        again = extract(teacher_copy, name="again.safetensors")
        one, other = load_file(first.path), load_file(again.path)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        assert again.tower == first.tower
        assert (
            again.fingerprint["weights"]
            == MobileVLMCheckpoint.open(teacher_copy).fingerprint
            != first.fingerprint["weights"]
        )
        same = {key: value for key, value in again.fingerprint.items() if key != "weights"}
        assert same == {key: value for key, value in first.fingerprint.items() if key != "weights"}


def test_a_file_of_the_smallest_depth_does_not_name_it(extract: Extract) -> None:
    """So such files have the bytes that they had before stems could be deeper, and those files are still read."""
    first = extract()
    assert extract(depth=1, name="same.safetensors").path.read_bytes() == first.path.read_bytes()
    deeper = extract(depth=2, name="deeper.safetensors")
    for info, named in ((first, None), (deeper, 2)):
        with safe_open(info.path, "pt") as file:
            assert json.loads(file.metadata()[METADATA_KEY]).get("depth") == named
    with pytest.raises(InputError, match=r"teacher: no stem of depth 5, because layer 4 is not .* 4; choose depth 4$"):
        extract(depth=5, name="never.safetensors")


def test_a_tower_of_its_own_checkpoint_is_found(extract: Extract, golden: Path, teacher_copy: Path) -> None:
    """As in checkpoints of the first generation."""
    weights = read_weights(teacher_copy)
    (teacher_copy / "pytorch_model.bin").unlink()
    write_weights({key: t for key, t in weights.items() if not key.startswith(TOWER_PREFIX)}, teacher_copy, dtype=None)
    raw = json.loads((teacher_copy / "config.json").read_text())
    (teacher_copy / "config.json").write_text(json.dumps(raw | {"mm_vision_tower": str(golden / "clip")}))
    assert extract(teacher_copy, name="own.safetensors").tower == extract().tower
    (teacher_copy / "config.json").write_text(json.dumps(raw | {"mm_vision_tower": str(golden / "images")}))
    with pytest.raises(InputError, match="no vision tower in its weights"):
        extract(teacher_copy, name="none.safetensors")


MEMORY = """
import ctypes, sys, threading, torch
from pathlib import Path
from alignkd.vlm.stem.extract import extract_stem
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
torch.set_num_threads(1)
def anonymous():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024
folder, clip, out = map(Path, sys.argv[1:])
before = highest = anonymous()
done = threading.Event()
def watch():
    global highest
    while not done.wait(0.001):
        highest = max(highest, anonymous())
thread = threading.Thread(target=watch); thread.start()
extract_stem(MobileVLMCheckpoint.open(folder, vision_config=clip), out, dtype=torch.float16)
done.set(); thread.join()
print(highest - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_the_rest_of_the_teacher_is_never_in_memory(
    golden: Path, teacher_copy: Path, tmp_path: Path, prepared: PreparedProcesses, patience: float
) -> None:
    weights = read_weights(teacher_copy)
    (teacher_copy / "pytorch_model.bin").unlink()
    shapes = {"hidden_size": 512, "intermediate_size": 16384, "num_hidden_layers": 4, "vocab_size": 4096}
    raw = json.loads((teacher_copy / "config.json").read_text()) | shapes
    (teacher_copy / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        state = MobileVLM(load_config(teacher_copy, vision_config=golden / "clip")).state_dict()
    large = {key: torch.zeros(tensor.shape, dtype=torch.float16) for key, tensor in state.items()}
    large |= {key: tensor for key, tensor in weights.items() if key.startswith(TOWER_PREFIX)}
    write_weights(large, teacher_copy, dtype=torch.float16)
    total = sum(tensor.nbytes for tensor in large.values())
    child = prepared.start("-c", MEMORY, teacher_copy, golden / "clip", tmp_path / "stem")
    output, errors = child.communicate(patience)
    assert child.returncode == 0, errors
    stem = (tmp_path / "stem").stat().st_size
    assert total > 200e6 and stem < 10e6
    assert int(output) < 0.2 * total


def test_tower_hashes_are_of_values_in_a_dtype(golden: Path) -> None:
    config = load_config(golden / "student", vision_config=golden / "clip")
    tower = {key: value for key, value in read_weights(golden / "student").items() if key.startswith(TOWER_PREFIX)}
    found = tower_hashes(tower.items(), config)
    assert len(set(found.values())) == 3
    assert tower_hashes(reversed(list(tower.items())), config) == found
    assert tower_hashes([*tower.items(), ("model.norm.weight", torch.ones(3))], config) == found
    # a rounded copy is the same tower in the dtype that it was rounded to, and no other
    rounded = tower_hashes(((key, value.bfloat16()) for key, value in tower.items()), config)
    assert rounded["bfloat16"] == found["bfloat16"] and rounded["float32"] != found["float32"]
    # copies of the same values are the same tower, whatever dtype they are kept in
    again = tower_hashes(((key, value.bfloat16().float()) for key, value in tower.items()), config)
    assert again == rounded
    key = min(tower)
    assert tower_hashes((tower | {key: tower[key] + 1e-3}).items(), config)["float32"] != found["float32"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = load_model(golden / "student", vision_config=golden / "clip", dtype=dtype)
        name, value = running_tower_hash(model)
        assert (name, value) == (str(dtype).removeprefix("torch."), found[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_students_tower_must_be_the_teachers(extract: Extract, golden: Path, dtype: torch.dtype) -> None:
    info = extract(dtype=torch.bfloat16)
    student = load_model(golden / "student", vision_config=golden / "clip", dtype=dtype)
    check_same_tower(info, student)
    with torch.no_grad():
        next(student.model.vision_tower.parameters()).mul_(1.5)
    with pytest.raises(
        InputError, match=r"stem\.safetensors: .*hash \w{64} in \w+, the student's \w{64}; .*: store att"
    ):
        check_same_tower(info, student)


def test_another_select_layer_is_another_tower(extract: Extract, golden: Path, teacher_copy: Path) -> None:
    raw = json.loads((teacher_copy / "config.json").read_text())
    (teacher_copy / "config.json").write_text(json.dumps(raw | {"mm_vision_select_layer": -1}))
    info = extract(teacher_copy)
    with pytest.raises(InputError, match="features of another tower"):
        check_same_tower(info, load_model(golden / "student", vision_config=golden / "clip"))


def test_a_stem_must_be_of_the_stores_teacher(extract: Extract) -> None:
    info = extract()
    store = {**info.fingerprint, "template": "any", "dtype": "bfloat16+nf4", "capture": "3"}
    check_stem_of_teacher(info, store, "store")
    assert "template" not in info.fingerprint
    for name in info.fingerprint:
        with pytest.raises(
            InputError, match=rf"not of the teacher that dumped store s: {name} is .* in the stem, other"
        ):
            check_stem_of_teacher(info, store | {name: "other"}, "s")
    with pytest.raises(InputError, match=r"weights is .* in the stem, not recorded in the store"):
        check_stem_of_teacher(info, {key: value for key, value in store.items() if key != "weights"}, "s")


def rewrite(path: Path, tensors: Any = lambda t: t, **metadata: Any) -> None:
    """The file again, with other tensors or other entries of its metadata (None leaves the metadata out)."""
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()[METADATA_KEY])
    kept = {METADATA_KEY: json.dumps(described | metadata)} if metadata.get("format", "") is not None else {}
    save_file(tensors(load_file(path)), path, metadata=kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "metadata of another version or damaged"),
        ({"surprise": 1}, "metadata of another version or damaged"),
        ({"format": None}, "safetensors without the metadata of a stem"),
        ({"dtype": "bfloat16"}, "tensors are F32, BF16 in its metadata"),
        ({"config": {}}, "config in the metadata is unusable"),
        ({"depth": 0}, r"metadata of another version or damaged \(depth: "),
        ({"depth": 10**12}, "config in the metadata is unusable .*no stem of depth 1000000000000, "),
        ({"depth": 2}, r"layers.0.mlp.down_proj.weight has shape none, expected \("),
        (
            {"tensors": lambda t: {k: v for k, v in t.items() if "q_proj" not in k}},
            "q_proj.weight has shape none",
        ),
        ({"tensors": lambda t: t | {"more": torch.ones(2)}}, r"tensor more has shape \(2,\), expected none"),
        (
            {"tensors": lambda t: t | {EMBEDDING_KEY: torch.ones(3, 128)}},
            r"has shape \(3, 128\), expected \(512,",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_not_what_it_says_is_refused(extract: Extract, change: dict[str, Any], message: str) -> None:
    info = extract()
    rewrite(info.path, **change)
    for read in (read_stem_info, open_stem):
        with pytest.raises(InputError, match=message) as refused:
            read(info.path)
        assert "\n" not in str(refused.value) and str(info.path) in str(refused.value)


def test_no_file_no_safetensors_and_a_cut_one(extract: Extract, tmp_path: Path) -> None:
    info = extract()
    whole = info.path.read_bytes()
    for content in (b"", b"no safetensors", whole[: len(whole) // 2]):
        info.path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as a stem"):
            read_stem_info(info.path)
    with pytest.raises(InputError, match=r"absent: cannot be read as a stem"):
        open_stem(tmp_path / "absent")


def test_nothing_is_left_of_a_stem_that_cannot_be_written(
    extract: Extract, golden: Path, tmp_path: Path, teacher_copy: Path
) -> None:
    before = extract().path.read_bytes()
    weights = torch.load(teacher_copy / "pytorch_model.bin")
    for changed, message in (
        (
            {"model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)},
            r"q_proj.weight has shape \(2, 2\), config.json",
        ),
        ({"model.layers.0.self_attn.q_proj.weight": None}, r"no model.layers.0.self_attn.q_proj.weight in its weights"),
    ):
        merged = {key: value for key, value in (weights | changed).items() if value is not None}
        torch.save(merged, teacher_copy / "pytorch_model.bin")
        with pytest.raises(InputError, match=message):
            extract(teacher_copy)
    with pytest.raises(InputError, match=r"teacher: cannot be written .*it is a folder; give the path of a file"):
        extract(name="teacher")
    assert (tmp_path / "stem.safetensors").read_bytes() == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"stem.safetensors", "teacher"}
