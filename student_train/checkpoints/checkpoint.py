"""Checkpoints that are whole or absent: written under a temporary name, checked by checksum, renamed.

A checkpoint holds everything that a resumed run needs: float32 master weights of every trained parameter (adapters
included), both moments of AdamW in float32 (also if the run keeps them in 8 bits), its counters, the step, samples seen
and skipped, the state of TAID, and the settings that decide the run. It has no random state: dropout is seeded by the
step, and the sample order is a pure function of seed and step. What is not trained comes from the student's own
checkpoint, whose hash is among the settings.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from safetensors import SafetensorError
from torch import Tensor

from alignkd.disk.opening import check_readable
from alignkd.disk.whole_file import fsync_path, write_whole
from alignkd.storage import StoreError
from alignkd.storage.files.checksum import file_crc32c
from alignkd.storage.schema.sealed_json import seal, unseal
from alignkd.student_train.checkpoints.parts import Parts, in_parts
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.engine.optimizers.moments import MOMENTS
from alignkd.student_train.errors import TrainError, unreadable, writing
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.weights.tensor_file import save_tensors

logger = logging.getLogger(__name__)
STATE = "state.json"
NOTHING: Mapping[str, Any] = MappingProxyType({})
WEIGHTS = "weights"
KEPT = "kept"
ADAPTERS = "adapters"
# optimiser and number of processes that wrote the checkpoint; another run may go on with others
WRITER = "writer"
NUM_RECORDS = "num_records"
# in checkpoints, and in the mark of a finished run: see `DomainHistory`
DOMAIN_WEIGHTS = "domain_weights"
# settings that checkpoints of earlier versions lack
ABSENT_FROM_OLD_CHECKPOINTS = {NUM_RECORDS}
# settings that they lack because there was no choice
FIXED_IN_OLD_CHECKPOINTS = {
    **{f"losses.{name}": 0.0 for name, term in TERMS.items() if term.weight == 0},
    "trained": "all",
    "quantization": "none",
    "losses.supervised_on_generated": 1.0,
    "losses.attention_layers": None,
    "losses.attention_form": "mse",
    "losses.attention_heads": "adapter",
    "losses.attention_row_weights": "none",
    "losses.attention_decay": None,
    "losses.preference": 0.0,
    "preference": "none",
    "preference_beta": 0.1,
    "preference_smoothing": 0.0,
    "kto_kl_gradient": False,
    "losses.taid": None,
    "losses.relations_of": "last_hidden",
    "losses.relations_layer": None,
    "losses.relation_rows": "unit",
    "losses.visual_logit_divergence": "forward_kl",
    "losses.visual_logit_temperature": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Progress of a run; `step` is the number of optimiser steps done."""

    step: int = 0
    samples_seen: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The state in a stored document, which may have other keys."""
        return cls(**{name: document[name] for name in asdict(cls())})

    def after(self, *, samples: int, skipped: bool) -> Self:
        """The state one optimiser step later."""
        return replace(
            self,
            step=self.step + 1,
            samples_seen=self.samples_seen + samples,
            skipped_steps=self.skipped_steps + skipped,
            skipped_in_a_row=(self.skipped_in_a_row + 1) * skipped,
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of the checkpoint in this folder."""
    return int(path.name.removeprefix("step-"))


def save_checkpoint(
    folder: Path,
    engine: Engine,
    state: TrainState,
    settings: Mapping[str, Any],
    ranks: Ranks,
    *,
    keep: int,
    kept: bool = False,
    best_step: int | None = None,
    validation: Mapping[str, Any] | None = None,
    further: Mapping[str, Any] = NOTHING,
) -> None:
    """Write `folder/step-N` and drop old ones; called by ALL ranks, written by the first.

    Args:
        keep: number of newest checkpoints that remain.
        kept: this one remains also when it is not among them.
        best_step: the checkpoint of this step is not dropped.
        validation: state of the validations, kept as `validation` in `state.json`.
        further: other entries of `state.json`, of what else follows from the steps so far.

    Raises:
        TrainError: the disk is full or not writable; no incomplete checkpoint remains.
    """
    target = checkpoint_path(folder, state.step)
    temporary = folder / f".tmp-{target.name}"
    problem = _attempt(target, lambda: _make_empty(temporary)) if ranks.is_first else None
    for name, tensors in _parts(engine):
        if ranks.is_first and not problem:
            problem = _attempt(target, partial(save_tensors, tensors, temporary / name))
    if ranks.is_first:
        document = {**further, **asdict(state), "counters": engine.counters, "settings": dict(settings), KEPT: kept}
        document[ADAPTERS] = engine.student.adapters.sizes
        document[WRITER] = {"optimizer": engine.optimizer, "processes": ranks.world_size}
        if validation is not None:
            document["validation"] = dict(validation)
        problem = problem or _attempt(target, lambda: _commit(temporary, target, document))
        shutil.rmtree(temporary, ignore_errors=True)
    # All ranks raise an error of the first one: otherwise they would wait for it in the next step.
    if problem := ranks.from_first(problem):
        raise TrainError(problem)
    if ranks.is_first:
        _drop_old(folder, keep, best_step=best_step)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A sound checkpoint on the disk; its tensors are not in memory.

    Attributes:
        path: its folder.
        document: `state.json`.
    """

    path: Path
    document: Mapping[str, Any]

    @property
    def state(self) -> TrainState:
        """Where the run was."""
        return TrainState.of(self.document)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the run."""
        return dict(self.document["settings"])


def all_checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint in the folder by step, sound or not."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def sound_checkpoint(path: Path, *, kind: str = "") -> Checkpoint:
    """A checkpoint after its files were compared with their checksums.

    Args:
        kind: only files whose names start with this, such as WEIGHTS.

    Raises:
        TrainError, StoreError: it is damaged.
        OSError: a file cannot be read, or was removed meanwhile.
    """
    found = Checkpoint(path=path, document=unseal(path / STATE))
    _verify_files(path, found.document["files"], kind)
    return found


def find_checkpoint(folder: Path, settings: Mapping[str, Any], ranks: Ranks) -> Checkpoint | None:
    """The newest sound checkpoint of a run, the same on ALL ranks; None if there is none at all.

    Raises:
        TrainError: every checkpoint is damaged, or they belong to a run with other settings.
    """
    return ranks.on_first(lambda: _newest_of_run(folder, settings))


def _newest_of_run(folder: Path, settings: Mapping[str, Any]) -> Checkpoint | None:
    found = _newest_sound(folder)
    if found is not None:
        check_same_settings(folder.parent, found.document["settings"], settings)
    return found


def load_checkpoint(found: Checkpoint, engine: Engine) -> None:
    """Load a checkpoint into the engine.

    Raises:
        TrainError: it was removed or changed after it was found: that of an extended run belongs to another process.
    """
    try:
        with Parts(found.path, WEIGHTS) as parts:
            engine.load_weights(parts.tensor)
        for kind in MOMENTS:
            with Parts(found.path, kind) as parts:
                engine.load_moments(kind, parts.tensor)
    except (OSError, KeyError, SafetensorError) as error:
        raise TrainError(
            f"{found.path}: was removed or changed while it was read ({error}); run the same command again"
        ) from error
    engine.load_counters(found.document["counters"])


def keep_validation(found: Checkpoint, validation: Mapping[str, Any], ranks: Ranks) -> None:
    """Replace the state of the validations in a checkpoint; called by ALL ranks, written by the first.

    Raises:
        TrainError: the disk is full or not writable; the checkpoint is then what it was.
    """
    content = seal({**found.document, "validation": dict(validation)})
    file = found.path / STATE
    ranks.on_first(lambda: _replace(file, content))


def _replace(file: Path, content: bytes) -> None:
    with writing(file):
        write_whole(file, content)


def load_weights(folder: Path, step: int, engine: Engine) -> None:
    """Load the weights of an earlier step into the engine, to be exported; called by ALL ranks.

    Raises:
        TrainError: its checkpoint is missing or damaged.
    """
    path = checkpoint_path(folder, step)
    engine.ranks.on_first(lambda: _check_sound(path))
    with Parts(path, WEIGHTS) as parts:
        engine.load_weights(parts.tensor)


def _check_sound(path: Path) -> None:
    try:
        _check_can_be_opened(path)
        sound_checkpoint(path, kind=WEIGHTS)
    except (StoreError, TrainError) as error:
        raise TrainError(f"checkpoint {path}: {error}") from error


def check_same_settings(output: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings; the TrainError names each with both values."""
    differing = differing_settings(found, asked)
    if differing and (grown := grown_stores(found, asked)) and len(differing) == len(grown.settings):
        raise TrainError(f"output {output} was started when {grown.text}; choose another output")
    if len(differing) == 1 and differing[0].startswith("steps "):
        raise TrainError(
            f"output {output} was started with another length: {differing[0]}; restore it, or train further into a new "
            f"output with train.extend (run: {output})"
        )
    if differing:
        raise TrainError(
            f"output {output} was started with other settings: {'; '.join(differing)}; "
            "restore them, or choose another output"
        )


@dataclass(frozen=True, kw_only=True)
class GrownStores:
    """Stores that have more samples than at the start of a run.

    Attributes:
        settings: the deciding settings that differ because of it.
        text: what is different, for a message.
    """

    settings: frozenset[str]
    text: str


def grown_stores(found: Mapping[str, Any], asked: Mapping[str, Any]) -> GrownStores | None:
    """The stores of a run that have grown since its settings were `found`; None if there are none."""
    settings: set[str] = set()
    texts = []
    for name in sorted(found.keys() & asked.keys()):
        if name.rpartition(".")[2] != NUM_RECORDS or not found[name] < asked[name]:
            continue
        prefix = name.removesuffix(NUM_RECORDS)  # `store.N.` in a run of several stores
        settings |= {name, *(one for one in (prefix + "manifest_hash",) if found.get(one) != asked.get(one))}
        store = f"store {asked.get(prefix + 'name')}" if prefix else "the store"
        texts.append(f"{store} had {found[name]} samples, now it has {asked[name]}")
    if not texts:
        return None
    return GrownStores(
        settings=frozenset(settings), text=f"{'; '.join(texts)} (`dump` has added some, or it is another store)"
    )


def differing_settings(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Each setting that differs, with both values."""
    found = {**{name: value for name, value in FIXED_IN_OLD_CHECKPOINTS.items() if name in asked}, **found}
    return [
        f"{name} was {found.get(name)}, is {asked.get(name)}"
        for name in sorted({*found, *asked} - (ABSENT_FROM_OLD_CHECKPOINTS - {*found}))
        if found.get(name) != asked.get(name)
    ]


def _parts(engine: Engine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The files of a checkpoint by name, one after the other: only one of them is in memory at a time."""
    for kind in (WEIGHTS, *MOMENTS):
        tensors = engine.master_weights() if kind == WEIGHTS else engine.moments(kind)
        yield from in_parts(kind, tensors)


def _attempt(target: Path, write: Callable[[], None]) -> str | None:
    """Call `write`; return the error line if the disk refused it."""
    try:
        with writing(target):
            write()
    except TrainError as error:
        return str(error)
    return None


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _commit(temporary: Path, target: Path, document: dict[str, Any]) -> None:
    files = {path.name: [path.stat().st_size, file_crc32c(path)] for path in sorted(temporary.iterdir())}
    (temporary / STATE).write_bytes(seal({**document, "files": files}))
    for path in (*temporary.iterdir(), temporary):
        fsync_path(path)
    if target.exists():  # it is damaged: a sound one would have been resumed
        shutil.rmtree(target)
    temporary.rename(target)
    fsync_path(target.parent)


def _drop_old(folder: Path, keep: int, *, best_step: int | None) -> None:
    """Remove all checkpoints but the newest ones, those that were written to remain, and the best one."""
    best = None if best_step is None else checkpoint_path(folder, best_step)
    for old in all_checkpoints(folder)[:-keep]:
        if old != best and not _is_kept(old):
            shutil.rmtree(old)


def _is_kept(path: Path) -> bool:
    try:
        return bool(unseal(path / STATE).get(KEPT))
    except StoreError:
        return False


def _newest_sound(folder: Path) -> Checkpoint | None:
    candidates = all_checkpoints(folder)
    for path in reversed(candidates):
        _check_can_be_opened(path)
        try:
            return sound_checkpoint(path)
        except (StoreError, TrainError) as error:
            logger.warning("checkpoint %s is damaged (%s); trying the one before", path, error)
    if candidates:
        raise TrainError(
            f"{folder}: none of {len(candidates)} checkpoints is sound; restore one, or choose another output"
        )
    return None


def _check_can_be_opened(path: Path) -> None:
    """Stop at a checkpoint that cannot be opened (permissions, a file server that is down): it may be sound.

    Raises:
        TrainError: an existing file cannot be opened.
    """
    try:
        for file in path.iterdir():
            check_readable(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return  # damage, which `sound_checkpoint` reports
    except OSError as error:
        raise unreadable(error.filename or path, error) from error


def _verify_files(path: Path, files: Mapping[str, Any], kind: str) -> None:
    """Compare size and checksum of every file whose name starts with `kind`."""
    for name, (size, checksum) in files.items():
        if not name.startswith(kind):
            continue
        file = path / name
        if not file.is_file():
            raise TrainError(f"{name} is missing")
        if file.stat().st_size != size:
            raise TrainError(f"{name} has {file.stat().st_size} bytes, expected {size}")
        if (found := file_crc32c(file)) != checksum:
            raise TrainError(f"{name} has crc32c {found:08x}, expected {checksum:08x}")
