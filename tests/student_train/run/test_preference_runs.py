"""Whole runs on preference data: pairs are dumped, trained on, resumed, held out, and shared between ranks."""

import json
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from processes_of_two import ended, run_two
from safetensors.torch import load_file

from alignkd.pipeline.cli import main
from alignkd.storage import StoreReader, verify_store
from alignkd.storage.read.pairs import Pairs
from alignkd.storage.tools.merge import merge_stores
from alignkd.storage.tools.select.choose import Choice, choose
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.samples.held_out import held_out_of
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.logits.group_sizes import GroupSizes
from alignkd.student_train.run.plan import plan_run
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

MakePairs = Callable[..., TrainJob]
PREFERENCE = {"attention": 0, "vision_all": 0, "vision_top": 0, "logit": 0, "supervised": 0, "preference": 1.0}
KEPT = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
NUM = 8


def entries_of(samples: list[Any], number: int = NUM) -> list[dict[str, Any]]:
    """Pairs of answers of different lengths to questions with and without an image, and a longer conversation."""
    found = []
    for n in range(number):
        base = samples[n % len(samples)]
        asked = [{"from": "human", "value": f"{base['conversations'][0]['value']} {n}"}]
        if n == 1:
            asked += [{"from": "gpt", "value": "an apple"}, {"from": "human", "value": "and its colour?"}]
        answers = {"chosen": "red apple " * (1 + n % 3), "rejected": {"from": "gpt", "value": "a dog " * (1 + n % 2)}}
        image = {"image": base["image"]} if "image" in base else {}
        found.append({"id": f"pair {n}", **image, "conversations": asked, **answers})
    return found


def dumped(folder: Path, entries: list[Any], golden: Path, images: Path, **store: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(entries))
    dump(
        DumpJob(
            data=(DataSet(path=folder / "pairs.json", images=images, pairs=True),),
            template="v1",
            max_tokens=2048,
            teacher=TeacherConfig(checkpoint=str(golden / "teacher"), vision_config=golden / "clip", sanity="off"),
            store=StoreConfig(**{"path": folder / "store", "shard_size": 4, **KEPT, **store}),
        )
    )
    return folder / "store"


@pytest.fixture(scope="module")
def pairs_store(
    golden_folder: Path, images_folder: Path, v1_samples: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return dumped(tmp_path_factory.mktemp("pairs"), entries_of(v1_samples), golden_folder, images_folder)


@pytest.fixture
def make_run(pairs_store: Path, golden_folder: Path, images_folder: Path, tmp_path: Path) -> MakePairs:
    """`make_run("name", **train settings)`: a run with `dpo` and nothing else."""

    def make(name: str, store: Path | tuple[TrainStore, ...] = pairs_store, **settings: Any) -> TrainJob:
        defaults: dict[str, Any] = {"steps": 3, "micro_batch": 8, "learning_rate": 1e-3, "warmup_ratio": 0.0}
        losses = PREFERENCE | settings.pop("losses", {})
        config = TrainConfig(
            **defaults | {"preference": "dpo", "losses": losses, "output": tmp_path / name} | settings,
            report_to="none",
        )
        return TrainJob(
            student=golden_folder / "student",
            store=store,
            train=config,
            images=images_folder,
            template="v1",
            vision_config=golden_folder / "clip",
        )

    return make


def metrics(job: TrainJob, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(job.train.output) / name).read_text().splitlines()]


def assert_alike(job: TrainJob, other: TrainJob, *, rel: float = 1e-4) -> None:
    """The same losses, figures of pairs and trained weights up to rounding."""
    for line, reference in zip(metrics(job), metrics(other), strict=True):
        for figure in ("loss", "preference", "preference_margin", "preference_accuracy", "grad_norm", "samples_seen"):
            assert line[figure] == pytest.approx(reference[figure], rel=rel, abs=1e-5), figure
    ours, theirs = (load_file(Path(one.train.output) / "student" / "model.safetensors") for one in (job, other))
    for key, value in theirs.items():
        assert (ours[key] - value).norm() <= 1e-2 * value.norm() + 1e-6, key


def test_a_store_of_pairs(pairs_store: Path, golden_folder: Path, images_folder: Path, tmp_path: Path) -> None:
    assert verify_store(pairs_store, deep=True).ok
    reader = StoreReader(pairs_store)
    pairs = Pairs.of(reader)
    assert pairs.has_partner.all() and pairs.rejected.sum() == NUM
    for position in np.flatnonzero(pairs.first):
        chosen, rejected = reader[int(position)], reader[int(pairs.partner[position])]
        assert chosen.id.removesuffix("#chosen") == rejected.id.removesuffix("#rejected")
        assert chosen.conversations[:-1] == rejected.conversations[:-1] and chosen.images == rejected.images
        assert [turn.get("trained", True) for turn in chosen.conversations if turn["from"] == "gpt"][:-1] in (
            [],
            [False],
        )
    # neighbours of a shard, which stores their images once
    assert (np.abs(pairs.partner - np.arange(2 * NUM)) == 1).all()
    other = dumped(
        tmp_path / "other",
        [
            {"id": n, "prompt": f"say {n}", "chosen": "yes yes", "rejected": "no" * (1 + 4000 * (n == 1))}
            for n in range(3)
        ],
        golden_folder,
        images_folder,
    )
    lone = Pairs.of(StoreReader(other))
    assert lone.has_partner.sum() == 4 and len(lone.partner) == 5  # one rejected answer is too long
    merge_stores([pairs_store, other], tmp_path / "merged")
    merged = Pairs.of(StoreReader(tmp_path / "merged"))
    assert merged.has_partner.sum() == 2 * NUM + 4 and merged.rejected.sum() == NUM + 2


def test_the_student_learns_to_prefer_the_chosen_answers(make_run: MakePairs) -> None:
    job = make_run("long", steps=10, micro_batch=4, validation={"share": 0.3, "every": 5})
    train(job)
    validated = metrics(job, "validation.jsonl")
    lines = metrics(job)
    assert lines[-1]["preference"] < lines[0]["preference"] / 3
    assert lines[-1]["preference_accuracy"] == 1.0 > lines[0]["preference_accuracy"]
    assert validated[-1]["preference_margin"] > validated[0]["preference_margin"]
    reader = StoreReader(job.store)  # type: ignore[arg-type]
    held_out = held_out_of([reader], 0.3)
    pairs = Pairs.of(reader)
    assert set(pairs.partner[held_out]) == set(held_out) and validated[0]["samples"] == len(held_out)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("dpo", {"preference_smoothing": 0.1}),
        ("ipo", {"preference_beta": 0.5}),
        ("kto_pair", {}),
        ("kto_pair", {"kto_kl_gradient": True, "losses": {"supervised": 0.5}}),
    ],
)
def test_micro_batches_are_one_batch(kind: str, settings: dict[str, Any], make_run: MakePairs) -> None:
    whole = make_run("whole", preference=kind, **settings)
    budget = {"micro_batch": None, "token_budget": 700, "global_batch": 8}
    for name, limit in (("single", {"micro_batch": 1, "global_batch": 8}), ("budget", budget)):
        job = make_run(name, preference=kind, **limit, **settings)
        train(job)
        if name == "single":
            train(whole)
        assert_alike(job, whole)


@pytest.mark.parametrize("logits", [{"kind": "topk", "top_k": 8}, {"kind": "full"}])
def test_losses_on_logits_leave_rejected_answers_out(
    logits: dict[str, Any],
    make_run: MakePairs,
    v1_samples: Any,
    golden_folder: Path,
    images_folder: Path,
    tmp_path: Path,
) -> None:
    """In a run on pairs and in a plain one; with all pairs in one batch both see the same answers."""
    store = dumped(tmp_path / "stored", entries_of(v1_samples), golden_folder, images_folder, logits=logits)
    losses = {"supervised": 1.0, "logit": 0.5}
    found = {}
    for name, settings in {
        "pairs": {"losses": losses},
        "plain": {"micro_batch": 16, "preference": "none", "losses": losses | {"preference": 0}},
        "parts": {"micro_batch": 4, "global_batch": 16, "preference": "none", "losses": losses | {"preference": 0}},
        "both": {"micro_batch": 16, "preference": "none", "losses": losses | {"preference": 0}},
    }.items():
        job = make_run(name, store=store, steps=1, **settings)
        with pytest.MonkeyPatch.context() as patched:
            if name == "both":
                patched.setattr(Pairs, "of", classmethod(_no_pairs))
            train(job)
        found[name] = metrics(job)[0]
    for term in ("supervised", "logit"):
        assert found["pairs"][term] == pytest.approx(found["plain"][term], rel=1e-5)
        assert found["parts"][term] == pytest.approx(found["plain"][term], rel=1e-5)
        assert found["both"][term] != pytest.approx(found["plain"][term], rel=1e-3)
    assert found["parts"]["grad_norm"] == pytest.approx(found["plain"]["grad_norm"], rel=1e-4)


def test_losses_at_labels_leave_rejected_answers_out(
    make_run: MakePairs, v1_samples: Any, golden_folder: Path, images_folder: Path, tmp_path: Path
) -> None:
    """`nd`, `effect` and `keep`, in a run on pairs and in a plain one with text-only and rejected micro-batches."""
    kept: dict[str, Any] = {"logits": {"kind": "hidden"}, "counterfactual": {"remove": "focus", "entries": 16}}
    store = dumped(tmp_path / "stored", entries_of(v1_samples), golden_folder, images_folder, **kept)
    centres = tmp_path / "centres.safetensors"
    written = CliRunner().invoke(main, ["shards", "centres", str(store), "--out", str(centres), "--min-count", "2"])
    assert written.exit_code == 0, written.output
    plain = {"preference": "none", "global_batch": 16}
    for term, settings in {"nd": {"centres": centres}, "effect": {}, "keep": {}}.items():
        losses = {"supervised": 1.0, term: 0.5}
        of_plain = plain | {"losses": losses | {"preference": 0}}
        found = {}
        for name, more in {
            "pairs": {"losses": losses},
            "plain": of_plain | {"micro_batch": 16},
            "parts": of_plain | {"micro_batch": 1},
            "both": of_plain | {"micro_batch": 16},
        }.items():
            job = make_run(f"{term}-{name}", store=store, steps=1, **settings, **more)
            with pytest.MonkeyPatch.context() as patched:
                if name == "both":
                    patched.setattr(Pairs, "of", classmethod(_no_pairs))
                train(job)
            found[name] = metrics(job)[0]
        assert found["pairs"][term] == pytest.approx(found["plain"][term], rel=1e-4)
        assert found["parts"][term] == pytest.approx(found["plain"][term], rel=1e-4)
        assert found["both"][term] != pytest.approx(found["plain"][term], rel=1e-3)
        assert found["parts"]["grad_norm"] == pytest.approx(found["plain"]["grad_norm"], rel=1e-3)


def _no_pairs(cls: type[Pairs], reader: StoreReader) -> Pairs:
    return cls(rejected=np.zeros(len(reader), np.bool_), partner=np.full(len(reader), -1))


def test_two_ranks_are_one(make_run: MakePairs, start_child: Any, one_thread: None) -> None:
    settings = {"preference": "kto_pair", "kto_kl_gradient": True}
    alone = make_run("alone", **settings)
    train(alone)
    job = make_run("two", micro_batch=2, global_batch=8, **settings)
    run_two(start_child, job)
    assert_alike(job, alone)


def test_a_killed_run_is_the_unbroken_one(make_run: MakePairs, start_child: Any, one_thread: None) -> None:
    settings: dict[str, Any] = {"micro_batch": 2, "global_batch": 4, "steps": 4, "checkpoint_every": 2}
    settings["preference"] = "kto_pair"
    unbroken = make_run("unbroken", **settings)
    train(unbroken)
    job = make_run("killed", data_workers=2, **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 4, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    written = [Path(one.train.output) / "student" / "model.safetensors" for one in (job, unbroken)]
    assert written[0].read_bytes() == written[1].read_bytes()


def test_a_list_of_samples_chooses_pairs_by_their_chosen_answer(
    make_run: MakePairs, pairs_store: Path, tmp_path: Path
) -> None:
    reader = StoreReader(pairs_store)
    chosen = choose(reader, Choice(by="perplexity", ratio=0.5), lambda what, total: nullcontext(lambda done: None))
    chosen.selection.write(tmp_path / "list.json")
    kept = chosen.selection.positions(reader, "list")
    pairs = Pairs.of(reader)
    drawn = kept[pairs.first[kept]]
    assert 0 < len(drawn) < pairs.first.sum()
    listed = (TrainStore(path=pairs_store, samples=tmp_path / "list.json"),)
    plan = plan_run(make_run("listed", store=listed, steps=None, epochs=1.0, micro_batch=len(drawn)), start_ranks())
    assert plan.config.num_steps == 1
    seen = plan.order.global_batch_indices(0)
    assert set(seen.tolist()) == {*drawn.tolist(), *pairs.partner[drawn].tolist()}


def test_groups_of_positions_leave_rejected_answers_out(pairs_store: Path) -> None:
    """As the counts of the loss do: both together are all positions of the loss."""
    reader = StoreReader(pairs_store)
    everything = np.arange(len(reader))
    high, low = GroupSizes([reader], 0.5)(everything)
    rejected = Pairs.of(reader).rejected
    assert high > 0 and high + low == reader.num_supervised[~rejected].sum() < reader.num_supervised.sum()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"losses": {"preference": 0, "supervised": 1}}, "preference is 'dpo', but losses.preference is 0; set losses"),
        ({"preference": "none"}, "preference is 'none', but losses.preference is 1; choose dpo"),
        (
            {"preference": "ipo", "preference_smoothing": 0.1},
            "preference_smoothing is 0.1, but preference 'ipo' has no",
        ),
        ({"preference": "margin_mse", "preference_beta": 0.2}, "preference_beta is 0.2, but preference 'margin_mse'"),
        ({"kto_kl_gradient": True}, "kto_kl_gradient is True, but preference 'dpo' has no such setting"),
        ({"preference": "ipo", "preference_beta": 0}, "preference 'ipo' divides by it"),
        ({"domain_weights": "ddk"}, "preference is 'dpo' and domain_weights 'ddk', which counts single samples"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], line: str, make_run: MakePairs) -> None:
    with pytest.raises(ValueError, match=line):
        make_run("refused", **settings)


def test_a_store_without_pairs_or_without_the_reference(
    make_run: MakePairs, exact_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"has no pair of a chosen and a rejected answer; dump data with data\.pairs"):
        train(make_run("no pairs", store=exact_store))
    monkeypatch.setattr("alignkd.student_train.run.checks.target_sources.has_sequence_logprob", lambda manifest: False)
    with pytest.raises(ValueError, match="lacks sequence_logprob, the reference"):
        train(make_run("no reference"))
