"""Runs `alignkd` as users do, in a process of its own, over the golden samples."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from prepared_processes import PreparedProcesses

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, TruncatedLogits, open_writer
from alignkd.vlm.families.mobilevlm.weights.writer import write_weights
from alignkd.vlm.weights.files import read_weights

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]


@pytest.fixture(scope="session")
def alignkd(patience: float) -> Alignkd:
    """`alignkd("dump", path)`: the finished process, its output as text."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "alignkd.pipeline.cli", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=patience)

    return run


@pytest.fixture(scope="session")
def alignkd_prepared(prepared: PreparedProcesses, patience: float) -> Alignkd:
    """The same, forked from a process that has imported torch, DeepSpeed and transformers already."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        process = prepared.start("-m", "alignkd.pipeline.cli", *arguments)
        output, errors = process.communicate(patience)
        return subprocess.CompletedProcess(list(map(str, arguments)), process.wait(patience), output, errors)

    return run


@pytest.fixture(scope="session")
def alignkd_here() -> Alignkd:
    """The same in this process, which has imported everything already: an exception that a command lets through is the
    test's. What only a process of its own can show (its start, its signals, all of its stderr) takes `alignkd`."""
    from alignkd.pipeline.cli import main

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        given = list(map(str, arguments))
        done = CliRunner().invoke(main, given, catch_exceptions=False)
        return subprocess.CompletedProcess(given, done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def write_config(golden: Path, golden_images: Path, tmp_path: Path) -> WriteConfig:
    """`write_config(**sections)`: a complete configuration over the golden v1 samples, sections changed as given."""

    def write(name: str = "run.yaml", drop: tuple[str, ...] = (), **changes: dict[str, Any]) -> Path:
        model = {"vision_config": str(golden / "clip"), "dtype": "float32"}
        sections: dict[str, dict[str, Any]] = {
            "data": {"conversations": str(golden / "v1.json"), "images": str(golden_images), "template": "v1"},
            "teacher": {"checkpoint": str(golden / "teacher"), **model},
            "student": {"checkpoint": str(golden / "student"), **model},
            "store": {
                "path": str(tmp_path / "store"),
                "backend": "zarr",
                "attention": "float32",
                "vision_top": "float32",
                "vision_all": "float32",
                "logits": {"kind": "full"},
            },
            "train": {"output": str(tmp_path / "out"), "steps": 2, "micro_batch": 2},
        }
        sections = copy.deepcopy(sections)
        for section, values in changes.items():
            sections[section] |= values
        path = tmp_path / name
        path.write_text(yaml.safe_dump({key: value for key, value in sections.items() if key not in drop}))
        return path

    return write


@pytest.fixture
def another_tower(golden: Path, tmp_path: Path) -> Path:
    """A checkpoint like the golden student's whose vision tower is not the teacher's."""
    folder = tmp_path / "another-tower"
    folder.mkdir()
    for file in (golden / "student").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = read_weights(golden / "student")
    key = next(name for name in weights if name.endswith("patch_embedding.weight"))
    write_weights(weights | {key: weights[key] * 1.01}, folder, dtype=None)
    return folder


@pytest.fixture(scope="session")
def write_small_store() -> Callable[[Path], Path]:
    """`write_small_store(path)`: a zarr store that no teacher made, for commands that only look at a store.

    Five samples in shards of three; sample 1 is quarantined, 2 has no image, 0 and 4 show the same image.
    """

    def write(path: Path) -> Path:
        writer = open_writer(path, _small_manifest())
        for shard in writer.pending_shards():
            with writer.open_shard(shard) as sink:
                for index in writer.planned_samples(shard).tolist():
                    if index == 1:
                        sink.quarantine(index, "id 1", "image is damaged")
                    else:
                        sink.append(_small_record(index))
                sink.commit()
        return path

    return write


def _small_manifest() -> Manifest:
    return Manifest(
        fingerprint={"weights": "w", "tokenizer": "t"},
        data_fingerprint={"conversations": "c"},
        shapes=Shapes(num_heads=3, hidden_size=6, vision_tokens=4, vision_top_tokens=2, vocab_size=50),
        codecs=Codecs(vision_top="float16", vision_all="float16", logits=LogitsCodec(kind="topk", top_k=3)),
        num_samples=5,
        shard_size=3,
        seed=3,
    )


def _small_record(index: int) -> Record:
    def values(*shape: int) -> "np.ndarray[Any, np.dtype[np.float16]]":
        numbers = np.arange(np.prod(shape)).reshape(shape) % 17 - 8
        return (numbers / (3 if index == 3 else 4)).astype(np.float16)

    with_image = index != 2
    ids = [1, -200, 7, 8, 9, 10 + index] if with_image else [1, 7, 8, 9, 10 + index]
    positions = np.arange(len(ids) + (3 if with_image else 0), dtype=np.int32)
    vision, queries = (positions[1:5], positions[5:]) if with_image else (positions[:0], positions[:0])
    return Record(
        key=f"{index:064x}",
        id=f"id {index} ж",
        index=index,
        conversations=[{"from": "human", "value": "?" * index}, {"from": "gpt", "value": "да"}],
        images=(f"{3 if index == 3 else 4}.png",) if with_image else (),
        image_sha256=(f"{3 if index == 3 else 4:064x}",) if with_image else (),
        input_ids=np.array(ids, np.int32),
        labels=np.array([-100] * (len(ids) - 2) + ids[-2:], np.int32),
        vision_positions=vision,
        tqv_query_positions=queries,
        supervised_positions=positions[-3:-1],
        attention=values(1, len(queries), 3, 4) if with_image else None,
        vision_top_index=np.array([2, 0], np.uint16) if with_image else None,
        vision_top_embeddings=values(2, 6) if with_image else None,
        vision_embeddings=(values(4, 6),) if with_image else None,
        logits=TruncatedLogits(
            ids=np.array([3, 49, 4], np.uint16),
            logprobs=np.log([0.5, 0.25, 1]).astype(np.float16),
            offsets=np.array([0, 2, 3], np.int64),
            tail_logmass=np.array([np.log(0.25), -np.inf], np.float32),
        ),
    )
