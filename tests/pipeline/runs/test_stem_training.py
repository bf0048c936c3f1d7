"""Training from the teacher's stem is training from stored targets: the same losses, and nothing stored of them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from stem_runs import ALL, FROM_STEM, HIDDEN, assert_same_losses, dumped, opened, trained

from alignkd.pipeline.config.run_config import load_run_config
from alignkd.storage import verify_store
from alignkd.storage.schema.columns.shard import columns_of
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train
from alignkd.vlm.errors import InputError
from alignkd.vlm.stem.extract import extract_stem
from alignkd.vlm.stem.file import STEM_FILE, read_stem_info
from alignkd.vlm.stem.stem import stem_shapes
from alignkd.vlm.weights.files import read_weights

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]


@pytest.mark.parametrize("pairs", ["tqv", "tqt", "vqv"])
def test_the_same_losses_as_from_stored_targets(write: WriteConfig, pairs: str) -> None:
    """Samples with no, one and several images in one batch."""
    stored = write("stored", store={"attention_pairs": pairs})
    assert dumped(stored).manifest.codecs.from_stem == ()
    every = write("every", store={"attention_pairs": pairs, **FROM_STEM}, train={"data_workers": 2})
    assert dumped(every).manifest.codecs.from_stem == ALL
    expected = trained(stored)
    assert_same_losses(trained(every), expected)
    if pairs == "tqv":  # the rows of a part of the targets are those of all
        part = write("part", store={"attention_pairs": pairs, **dict.fromkeys(("attention", "vision_top"), "stem")})
        assert dumped(part).manifest.codecs.from_stem == ("attention", "vision_top")
        assert_same_losses(trained(part), expected)


def test_a_store_for_the_stem_holds_nothing_else(write: WriteConfig, tmp_path: Path) -> None:
    """`profile: stem`: no array of attention or vision; the manifest says where they come from; the stem lies in it."""
    config = write("stem", store={"inputs": "embed"})
    values = yaml.safe_load(config.read_text())
    values["store"] = {"path": values["store"]["path"], "inputs": "embed", "profile": "stem"}
    config.write_text(yaml.safe_dump(values))
    reader = dumped(config)
    codecs = reader.manifest.codecs
    assert codecs.from_stem == ALL and codecs.logits.kind == "nucleus"
    groups = {column.group for column in columns_of(reader.manifest)}
    assert not groups & {"attention", "top", "image"}
    assert not verify_store(tmp_path / "store-stem", deep=True).problems
    info = read_stem_info(reader.attachment(STEM_FILE))
    assert info.dtype == "float32" and not info.has_lm_head
    with safe_open(info.path, "pt") as file:
        assert set(file.keys()) == stem_shapes(info.config, lm_head=False).keys()
    record = reader[0]
    assert record.attention is None and record.vision_embeddings is None and record.vision_top_index is None
    # the store alone is enough to train on, as the file says it or by the manifest
    reader = dumped(config)  # nothing left to do: the same stem, byte for byte
    bare = write("bare", store={"path": str(tmp_path / "store-stem")}, data={"images": None})
    assert_same_losses(trained(config), trained(bare), relative=0)


def test_sources_per_target(write: WriteConfig, golden: Path, tmp_path: Path) -> None:
    """An extracted stem in place of what the store keeps, target by target; hidden states through its lm_head."""
    config = write("stored", store={"logits": HIDDEN})
    dumped(config)
    stem = tmp_path / "stem.safetensors"
    extract_stem(opened(golden, "teacher"), stem, dtype=torch.float32, lm_head=True)
    expected = trained(config)
    path = str(tmp_path / "store-stored")
    for name, settings in {
        "profile": {"profile": "stem"},
        "attention": {"targets": {"attention": "stem"}},
        "vision_top": {"targets": {"vision_top": "stem"}},
        "vision_all": {"profile": "stored", "targets": {"vision_all": "stem"}},
        "logits": {"targets": {"logits": "stem"}},
        "all": {"profile": "stem", "targets": {"logits": "stem"}},
    }.items():
        other = write(name, store={"path": path, "logits": HIDDEN}, train={"stem": str(stem), **settings})
        assert_same_losses(trained(other), expected)


def test_coarser_stored_targets_differ_from_the_stems(write: WriteConfig) -> None:
    """That the comparison above could fail: 8-bit targets are not what the stem gives."""
    coarse = {"attention": "sqrt_u8", "vision_all": "int8_channel", "vision_top": "from_all"}
    stored = write("stored", store=coarse, train={"steps": 1})
    dumped(stored)
    stem = write("stem", store=FROM_STEM, train={"steps": 1})
    dumped(stem)
    one, other = trained(stored)[0], trained(stem)[0]
    for term in ("attention", "vision_all", "vision_top"):
        assert one[term] == pytest.approx(other[term], rel=3e-2)
        assert one[term] != pytest.approx(other[term], rel=1e-6)
    assert one["logit"] == pytest.approx(other["logit"], rel=1e-6)


def test_half_precision(write: WriteConfig) -> None:
    """In bfloat16 a stem of that dtype gives what the store keeps, to the rounding of 16 bits."""
    model = {"dtype": "bfloat16"}
    kept = {"attention": "float16", "vision_all": "bfloat16", "vision_top": "from_all"}
    stored = write("stored", store=kept, teacher=model, student=model)
    dumped(stored)
    stem = write("stem", store=FROM_STEM, teacher=model, student=model)
    assert read_stem_info(dumped(stem).attachment(STEM_FILE)).dtype == "bfloat16"
    for mine, other in zip(trained(stem), trained(stored), strict=True):
        for term in LossConfig().weights:
            assert mine[term] == pytest.approx(other[term], rel=2e-2), term


def test_the_tower_runs_once_and_the_stem_is_no_part_of_the_result(
    write: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write("stem", store=FROM_STEM)
    dumped(config)
    job = load_run_config(config, "train").train_job()
    dataset = open_samples(job, job.open_student())
    student = build_student(job, job.open_student(), dataset.reader)
    assert student.stem is not None
    assert not [name for name, _ in student.named_parameters() if "stem" in name]
    assert not [name for name in student.state_dict() if "stem" in name]
    calls = []
    student.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    from alignkd.student_train.data.collate import collate
    from alignkd.student_train.run.checks.target_sources import stem_lookup

    student(
        collate(
            [dataset[0], dataset[1]],
            targets=job.train.losses.needed_targets.values(),
            attention_pairs="tqv",
            stem=stem_lookup(dataset.reader, job.train),
        )
    )
    assert calls == [1]
    trained(config)
    out = job.train.output
    kept = [path.name for path in (out / "student").iterdir()]
    assert not [name for name in kept if "stem" in name]
    keys = set(read_weights(out / "student"))
    assert keys == set(read_weights(Path(str(job.student))))


def test_resumed_and_unbroken_runs(write: WriteConfig, tmp_path: Path) -> None:
    """To the bit; and a resumed run must take its targets from where they came from."""
    config = write("stem", store=FROM_STEM)
    dumped(config)
    unbroken = trained(config)
    broken = write("again", store={"path": str(tmp_path / "store-stem")}, train={"checkpoint_every": 1})
    job = load_run_config(broken, "train").train_job()

    class StoppedError(Exception):
        pass

    from alignkd.student_train import trainer

    original = trainer.save_checkpoint

    def stopping(*arguments: Any, **settings: Any) -> None:
        original(*arguments, **settings)
        raise StoppedError  # after the first of two steps

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(trainer, "save_checkpoint", stopping)
        train(job)
    assert_same_losses(trained(broken), unbroken, relative=0)


def test_changing_the_source_of_a_run_is_refused(write: WriteConfig, golden: Path, tmp_path: Path) -> None:
    config = write("stored", store={})
    dumped(config)
    trained(config)
    stem = tmp_path / "stem.safetensors"
    extract_stem(opened(golden, "teacher"), stem, dtype=torch.float32)
    changed = write("stored", store={}, train={"stem": str(stem), "targets": {"attention": "stem"}})
    with pytest.raises(TrainError, match=r"targets\.attention .*stem in float32"):
        trained(changed)


def refused(job: TrainJob, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        train(job)
    assert "\n" not in str(caught.value)
    assert not (job.train.output / "metrics.jsonl").exists()


def test_what_does_not_fit_is_refused(write: WriteConfig, golden: Path, tmp_path: Path) -> None:
    store = {"path": str(tmp_path / "store-stored")}

    def job_of(**train: Any) -> TrainJob:
        output = {"output": str(tmp_path / "never")}
        return load_run_config(write("other", store=store, train=output | train), "train").train_job()

    dumped(write("stored", store={}))
    refused(job_of(profile="stem"), TrainError, r"has no stem.*alignkd stem extract.*set train\.stem")
    stem, other = tmp_path / "stem.safetensors", tmp_path / "other.safetensors"
    extract_stem(opened(golden, "teacher"), stem, dtype=torch.float32)
    extract_stem(opened(golden, "student"), other, dtype=torch.float32)
    refused(
        job_of(profile="stem", stem=str(other)),
        InputError,
        r"other\.safetensors: not of the teacher that dumped store .*: weights is \w+ in the stem, \w+ in the store",
    )
    refused(job_of(profile="stem", stem=str(tmp_path / "no")), InputError, "cannot be read as a stem")
    refused(
        job_of(targets={"logits": "stem"}, stem=str(stem)), TrainError, r"keeps logits 'full', which need no lm_head"
    )
    dumped(write("hidden", store={"logits": HIDDEN}))
    store["path"] = str(tmp_path / "store-hidden")
    refused(job_of(targets={"logits": "stem"}, stem=str(stem)), TrainError, "has no lm_head.*--lm-head")


def test_another_tower_is_refused_with_the_way_out(write: WriteConfig, another_tower: Path) -> None:
    dumped(write("stem", store=FROM_STEM))
    config = write("stem", store=FROM_STEM, student={"checkpoint": str(another_tower)})
    job = load_run_config(config, "train").train_job()
    refused(job, InputError, r"vision tower has hash \w{64} in float32, the student's \w{64}.*store attention, vision")


def test_a_target_that_is_nowhere(write: WriteConfig, golden: Path, tmp_path: Path) -> None:
    """`none` in the store: refused, unless a stem is named."""
    nothing = {"attention": "none", "vision_top": "none"}
    config = write("none", store=nothing, train={"losses": {"attention": 0.0, "vision_top": 0.0}})
    dumped(config)
    path = {"path": str(tmp_path / "store-none")}
    job = load_run_config(write("other", store=path), "train").train_job()
    refused(job, TrainError, r"codecs\.attention none; set losses\.attention to 0 .*targets\.attention: stem")
    with pytest.raises(InputError, match=r"train\.losses weighs attention, vision_top, but the store keeps"):
        load_run_config(write("file", store=nothing), "train")
    with pytest.raises(InputError, match=r"train\.targets\.attention is 'stored', but store\.attention is 'stem'"):
        load_run_config(write("clash", store=FROM_STEM, train={"profile": "stored"}), "train")
    stem = tmp_path / "stem.safetensors"
    extract_stem(opened(golden, "teacher"), stem, dtype=torch.float32)
    stored = write("stored", store={})
    dumped(stored)
    given = write("given", store={**nothing, **path}, train={"stem": str(stem)})
    assert_same_losses(trained(given), trained(stored))


def test_the_shard_commands_on_a_store_for_the_stem(
    write: WriteConfig, alignkd_here: Alignkd, tmp_path: Path, golden_images: Path
) -> None:
    dumped(write("stored", store={}))
    dumped(write("stem", store=FROM_STEM))
    store, stored = tmp_path / "store-stem", tmp_path / "store-stored"

    def run(*arguments: object, code: int = 0) -> str:
        done = alignkd_here("shards", *arguments)
        assert done.returncode == code, done.stderr
        return str(done.stdout if code == 0 else done.stdout + done.stderr)

    assert "attention stem, vision_top stem, vision_all stem" in run("ls", store)
    assert "attention, vision_top, vision_all: training computes them from the teacher's stem" in run(
        "show", store, "--id", "s2"
    )
    assert json.loads(run("show", store, "--id", "s1", "--json"))["from_stem"] == []  # text alone
    picture = ("--images", golden_images, "--png", tmp_path / "a.png")
    assert "wrote" in run("show", store, "--id", "s2", *picture)
    assert "attention: not checked: the store contains none, training takes it from" in run("verify", store, "--deep")
    held = {column["column"] for column in json.loads(run("stats", store, "--json"))["columns"]}
    assert "input_ids" in held and not [name for name in held if "attention" in name or name.startswith("vision_e")]
    run("convert", store, tmp_path / "tars", "--backend", "webdataset")
    assert "equal: 6 records" in run("diff", store, tmp_path / "tars")
    differing = run("diff", store, stored, code=1)
    assert "codecs.attention is stem in A, float32 in B" in differing and "only in B" in differing
    bare = write("tars", store={"path": str(tmp_path / "tars")})
    assert_same_losses(trained(bare), trained(write("stem", store=FROM_STEM)), relative=0)
    stem = store / "attachments" / STEM_FILE
    content = bytearray(stem.read_bytes())
    content[-1] ^= 1
    stem.write_bytes(content)
    assert "stem.safetensors" in run("verify", store, code=1)
