"""Attention of several layers together with LoRA, extension, validation, several stores, and either layout."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes_of_two import ended

from alignkd.student_train.data.samples.held_out import held_out_positions
from alignkd.student_train.engine.schedule import Schedule
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.run.attention.chosen import attention_match
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
LOSSES = {
    "vision_all": 0.0,
    "vision_top": 0.0,
    "logit": 0.0,
    "attention": 1000.0,
    "attention_layers": {0: 0, 1: (0, 1)},
}
KL = {**LOSSES, "attention_form": "kl", "attention_heads": "grouped", "attention_row_weights": "sharpness"}
BY_LAYER = ("attention", "attention_0", "attention_1")
WHOLE = {"micro_batch": 5, "global_batch": 10}
FILES = ("student/model.safetensors", "adapters.safetensors")


def validations(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]


def exported(job: TrainJob, output: Path) -> TrainJob:
    """One step of the whole student from where a run ended."""
    config = job.train.model_copy(
        update={"adapters": job.train.output / "adapters.safetensors", "output": output, "steps": 1, "validation": None}
    )
    return replace(job, student=job.train.output / "student", train=config, trained=TrainedConfig())


@pytest.mark.parametrize("losses", [LOSSES, KL], ids=["mse", "kl"])
def test_lora_is_the_student_that_it_is_merged_into(
    losses: dict[str, Any], layers_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """At the start LoRA adds nothing. At the end, its validation has the losses of the exported student."""
    settings: dict[str, Any] = {"losses": losses, "learning_rate": 1e-2, **WHOLE}
    validation = {"store": str(layers_store), "export": "last", "at_start": False, "every": 2}
    job = make_job(layers_store, output=tmp_path / "lora", steps=2, validation=validation, **settings)
    job = replace(job, trained=TrainedConfig(lora={"rank": 4}))
    train(job)
    train(make_job(layers_store, output=tmp_path / "whole", steps=1, **settings))
    train(exported(job, tmp_path / "merged"))
    start, whole, merged = (read_metrics(tmp_path / name)[0] for name in ("lora", "whole", "merged"))
    for name in BY_LAYER:
        assert start[name] == pytest.approx(whole[name], rel=1e-5), name
        assert merged[name] != pytest.approx(start[name], rel=1e-3), name
    assert validations(job.train.output)[-1]["attention"] == pytest.approx(merged["attention"], rel=1e-4)


def test_a_killed_run_with_lora_is_the_unbroken_one(
    layers_store: Path, make_job: MakeJob, start_child: Any, one_thread: None, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 3, "checkpoint_every": 1, "losses": KL, "gradient_checkpointing": True}
    trained = TrainedConfig(lora={"rank": 4, "dropout": 0.2})
    unbroken, job = (
        replace(make_job(layers_store, output=tmp_path / name, **settings), trained=trained)
        for name in ("unbroken", "killed")
    )
    train(unbroken)
    ended(start_child(job, ("trainer", "_optimiser_step", 3, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    for file in (*FILES, "lora/adapter_model.safetensors"):
        assert (job.train.output / file).read_bytes() == (unbroken.train.output / file).read_bytes(), file


def test_lora_behind_a_compared_layer_is_refused(layers_store: Path, make_job: MakeJob) -> None:
    """Nothing would train the attention of layer 0; that of layer 1 alone can be trained."""
    trained = TrainedConfig(lora={"rank": 2, "targets": r"layers\.1\.self_attn\.[qk]_proj", "projector": False})
    job = replace(make_job(layers_store, steps=1, losses=LOSSES), trained=trained)
    with pytest.raises(TrainError, match=r"the attention of decoder layer 0, and .* trains nothing") as error:
        train(job)
    assert "\n" not in str(error.value)
    second = job.train.losses.model_copy(update={"attention_layers": {1: (1,)}})
    assert train(replace(job, train=job.train.model_copy(update={"losses": second}))).step == 1


@pytest.mark.parametrize("losses", [LOSSES, KL], ids=["mse", "kl"])
def test_an_extended_run_is_the_longer_one(
    losses: dict[str, Any], layers_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Bit for bit at a constant learning rate; weights of rows are measured again, and are the same."""
    flat: dict[str, Any] = {"losses": losses, "warmup_ratio": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Schedule, "__call__", lambda self, step: 1.0)
        train(make_job(layers_store, output=tmp_path / "old", steps=1, **flat))
        extend = {"run": tmp_path / "old", "schedule": "constant"}
        train(make_job(layers_store, output=tmp_path / "new", steps=2, extend=extend, **flat))
        train(make_job(layers_store, output=tmp_path / "longer", steps=2, **flat))
    assert read_metrics(tmp_path / "old") + read_metrics(tmp_path / "new") == read_metrics(tmp_path / "longer")
    for file in FILES:
        assert (tmp_path / "new" / file).read_bytes() == (tmp_path / "longer" / file).read_bytes(), file
    other = {**losses, "attention_layers": {0: 0, 1: 1}}
    with pytest.raises(
        TrainError, match=r"attention_layers was 0: 0, 1: \[0, 1\], is 0: 0, 1: 1; .*extension"
    ) as error:
        train(make_job(layers_store, output=tmp_path / "other", steps=2, extend=extend, **flat | {"losses": other}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("losses", [LOSSES, KL], ids=["mse", "kl"])
def test_validation_of_the_training_store_has_the_losses_of_the_steps(
    losses: dict[str, Any], layers_store: Path, make_job: MakeJob, read_metrics: ReadMetrics
) -> None:
    validation: dict[str, Any] = {"store": str(layers_store), "every": 1, "micro_batch": 3, "export": "last"}
    job = make_job(layers_store, steps=2, losses=losses, validation=validation, **WHOLE)
    train(job)
    steps = read_metrics(job.train.output)
    for before, step in zip(validations(job.train.output), steps, strict=False):  # a step has the losses before it
        for name in ("loss", "supervised", "attention"):
            assert before[name] == pytest.approx(step[name], rel=1e-5), name
    assert steps[1]["attention"] != pytest.approx(steps[0]["attention"], rel=1e-3)


def test_a_held_out_share_has_the_losses_of_a_store_of_its_samples(
    layers_store: Path,
    dump_layers: Any,
    many_samples: Any,
    make_job: MakeJob,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    job = make_job(layers_store, output=tmp_path / "share", steps=1, losses=LOSSES, validation={"share": 0.3})
    train(job)
    samples = open_samples(job, job.open_student())
    held = [samples.reader[int(position)].index for position in held_out_positions(samples, 0.3)]
    store = dump_layers(tmp_path / "held", [many_samples[index] for index in held])
    train(make_job(store, output=tmp_path / "alone", steps=1, losses=LOSSES, micro_batch=1, global_batch=len(held)))
    found, (expected,) = validations(job.train.output)[0], read_metrics(tmp_path / "alone")
    assert found["samples"] == len(held) == expected["samples_seen"]
    for name in ("supervised", "attention"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_validation_of_data_without_targets(
    layers_store: Path, many_samples: Any, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """The supervised term alone; the steps are those of a run without validation."""
    (tmp_path / "data.json").write_text(json.dumps(many_samples))
    settings: dict[str, Any] = {"steps": 2, "losses": LOSSES, **WHOLE}
    train(make_job(layers_store, output=tmp_path / "plain", **settings))
    section = {"data": {"conversations": str(tmp_path / "data.json")}, "export": "last"}
    train(make_job(layers_store, output=tmp_path / "validated", validation=section, **settings))
    expected = read_metrics(tmp_path / "plain")
    assert read_metrics(tmp_path / "validated") == expected
    line, *_ = validations(tmp_path / "validated")
    assert line["supervised"] == pytest.approx(expected[0]["supervised"], rel=1e-5) and "attention" not in line


def test_stores_with_weights_count_by_the_elements_of_their_samples(
    dump_layers: Any, many_samples: Any, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """A store of weight 2 counts twice; each store alone has its figures, each layer too."""
    parts = {"six": many_samples[:6], "four": many_samples[6:]}
    stores = {name: dump_layers(tmp_path / name, samples) for name, samples in parts.items()}
    alone, elements = {}, {}
    for name, path in stores.items():
        size = len(parts[name])
        job = make_job(
            path, output=tmp_path / f"{name}-alone", steps=1, micro_batch=2, global_batch=size, losses=LOSSES
        )
        train(job)
        (alone[name],) = read_metrics(job.train.output)
        student = job.open_student()
        reader = open_samples(job, student).reader
        counts = GlobalCounts(
            [reader], student.config, ["attention"], attention_match(reader, student.config, job.train)
        )
        elements[name] = counts(np.arange(size))["attention"]
    weights = {"six": 1.0, "four": 2.0}
    listed = tuple(TrainStore(path=path, weight=weights[name]) for name, path in stores.items())
    train(make_job(listed, output=tmp_path / "both", steps=1, micro_batch=7, global_batch=14, losses=LOSSES))
    (line,) = read_metrics(tmp_path / "both")
    shares = {name: weights[name] * elements[name] for name in stores}
    for figure in BY_LAYER:
        mean = sum(shares[name] * alone[name][figure] for name in stores) / sum(shares.values())
        assert line[figure] == pytest.approx(mean, rel=1e-5), figure
    for name in stores:
        assert line["by_source"][name]["attention"] == pytest.approx(alone[name]["attention"], rel=1e-5)


@pytest.mark.parametrize(("layers", "found"), [((0,), "0, 1 and 0"), (None, "0, 1 and absent")])
def test_a_store_without_a_compared_layer_is_refused(
    layers: tuple[int, ...] | None,
    found: str,
    layers_store: Path,
    dump_layers: Any,
    dump: Any,
    many_samples: Any,
    make_job: MakeJob,
    tmp_path: Path,
) -> None:
    """Layer 0 alone, or the short form of it, beside a store of layers 0 and 1, in either order."""
    other = (
        dump(tmp_path / "other", many_samples)
        if layers is None
        else dump_layers(tmp_path / "other", many_samples, layers=layers)
    )
    for paths in ((layers_store, other), (other, layers_store)):
        listed = tuple(TrainStore(path=path, weight=weight) for path, weight in zip(paths, (1.0, 2.0), strict=True))
        with pytest.raises(TrainError) as error:
            train(make_job(listed, steps=1, losses=LOSSES))
        message = str(error.value)
        assert "\n" not in message and all(path.name in message for path in paths), message
        if paths[0] == layers_store:
            assert f"layers of the attention is {found}" in message


def test_either_layout_trains_the_same_bytes(
    dump_layers: Any, many_samples: Any, make_job: MakeJob, one_thread: None, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Chosen layers as `sqrt_u8`; of three stored layers two are compared."""
    outputs = [tmp_path / backend / "out" for backend in ("zarr", "webdataset")]
    for output in outputs:
        settings = {"backend": output.parent.name, "layers": (0, 1, 2), "codec": "sqrt_u8"}
        store = dump_layers(output.parent / "store", many_samples, **settings)
        train(make_job(store, output=output, steps=2, losses=LOSSES))
    zarr, tar = outputs
    assert read_metrics(zarr) == read_metrics(tar)
    for file in FILES:
        assert (zarr / file).read_bytes() == (tar / file).read_bytes(), file
