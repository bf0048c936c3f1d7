"""`store` as a list, from the configuration file to the report."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkd
from alignkd.pipeline.config.recipes import load_stage
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.result import PlanOptions
from alignkd.pipeline.plan.stages import plan_stages
from alignkd.student_train.run.mixture import mixture_of
from alignkd.student_train.stores import TrainStore
from alignkd.vlm.errors import InputError

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]


@pytest.fixture
def write_list(write_config: WriteConfig) -> Callable[..., Path]:
    """`write_list(entries, drop=...)`: the golden configuration with a list in place of the section `store`."""

    def write(entries: Any, drop: tuple[str, ...] = ("teacher",), **changes: Any) -> Path:
        path = write_config(name="list.yaml", drop=drop, **changes)
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "store": entries}))
        return path

    return write


@pytest.fixture
def two_stores(alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Entries of two dumped stores: three samples and one."""
    samples = json.loads((golden / "v1.json").read_text())
    entries = []
    for name, part in (("talk", samples[:3]), ("ask", samples[3:])):
        data, store = tmp_path / f"{name}.json", tmp_path / f"store-{name}"
        data.write_text(json.dumps(part))
        config = write_config(data={"conversations": str(data)}, store={"path": str(store)})
        dumped = alignkd_here("dump", config)
        assert dumped.returncode == 0, dumped.stderr
        entries.append({"path": str(store), "name": name})
    return entries


def test_plan_train_and_report(
    alignkd_here: Alignkd, alignkd_prepared: Alignkd, two_stores: Any, write_list: Callable[..., Path], tmp_path: Path
) -> None:
    entries = [{**entry, "share": share} for entry, share in zip(two_stores, (0.6, 0.4), strict=True)]
    train = {"steps": None, "epochs": 4, "micro_batch": 1, "global_batch": 5}
    config = write_list(entries, train=train)
    planned = alignkd_here("plan", config)
    assert planned.returncode == 0, planned.stderr
    rows = [line.split() for line in planned.stdout.splitlines()]
    # one sample of "ask" is 40 %, so a pass has 2.5 samples: 1.5 -> 2 of the three of "talk"
    assert ["talk", "3", "0.5", "2", "66.7%"] in rows
    assert ["ask", "1", "1", "1", "33.3%"] in rows
    assert "3 samples per pass" in planned.stdout and "3 steps see 15 samples" in planned.stdout
    as_json = json.loads(alignkd_here("plan", config, "--json").stdout)
    assert as_json["samples_per_pass"] == 3 and as_json["student_memory_bytes"] > 0
    assert as_json["hours"]["rtx3090"]["train"] > 0 and len(as_json["student_memory_table"]) == 24

    trained = alignkd_prepared("train", config)
    assert trained.returncode == 0, trained.stderr
    assert "source talk: 3 samples, each seen 0.5 times per pass: 2 of 3 samples (66.7%)" in trained.stderr
    assert "samples by source: 10 of talk, 5 of ask" in trained.stdout
    kept = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [entry["share"] for entry in kept["store"]] == [0.6, 0.4]
    assert RunConfig.model_validate(kept) == load_stage(config, "train", None)

    reported = alignkd_here("report", tmp_path / "out")
    table = {line.rsplit(None, 1)[0].strip(): line.split()[-1] for line in reported.stdout.splitlines() if line.strip()}
    assert table["source talk: samples"] == "10" and table["source ask: samples"] == "5"
    (run,) = json.loads(alignkd_here("report", tmp_path / "out", "--json").stdout)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert run["by_source"]["talk"]["supervised"] == pytest.approx(lines[-1]["by_source"]["talk"]["supervised"])
    assert float(table["source ask: loss"]) == pytest.approx(run["by_source"]["ask"]["loss"], rel=1e-3)


def test_plans_follow_what_is_trained_and_validated(
    two_stores: Any, write_list: Callable[..., Path], tmp_path: Path
) -> None:
    """LoRA, held-out samples, validations and extensions, each against the plan without it."""

    def plan(student: dict[str, Any] | None = None, **train: Any) -> Any:
        train = {"steps": 12, "micro_batch": 1, "global_batch": 1, **train}
        (found,) = plan_stages(write_list(two_stores, student=student or {}, train=train), None, PlanOptions())
        return found

    full, lora = plan(), plan({"lora": {"rank": 2}})
    assert lora.student.peak < full.student.peak and lora.hours["t4"] < full.hours["t4"]
    thirteen, two, one = (
        plan(validation={"share": 0.3, "every": every, "at_start": at_start}).hours["t4"]
        for every, at_start in ((1, True), (12, True), (12, False))
    )
    assert two > one and thirteen - two == pytest.approx(11 * (two - one), rel=1e-6)

    config = write_list(two_stores, train={"steps": None, "epochs": 5, "micro_batch": 1, "validation": {"share": 0.3}})
    (held_out,) = plan_stages(config, None, PlanOptions())
    job = load_stage(config, "train", None).train_job()
    assert held_out.per_pass == mixture_of(job).per_pass < 4
    assert held_out.steps == 5 * held_out.per_pass

    extend = {"run": str(tmp_path / "earlier"), "schedule": "restart"}
    assert plan(extend=extend).hours == full.hours  # there is no earlier run yet
    (tmp_path / "earlier" / "checkpoints" / "step-00000009").mkdir(parents=True)
    assert plan(extend=extend).hours["t4"] == pytest.approx(full.hours["t4"] * 3 / 12, rel=1e-9)


@pytest.mark.parametrize("command", ["dump", "run"])
def test_one_store_is_written_at_a_time(command: str, alignkd_here: Alignkd, write_list: Callable[..., Path]) -> None:
    done = alignkd_here(command, write_list([{"path": "a"}, {"path": "b"}], drop=()))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"store: found a list, which is for `alignkd train`; alignkd {command} takes one store at a time" in line


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"path": "a"}, {"name": "b"}], "store.1.path: missing"),
        ([{"path": "a", "wieght": 2.0}], "store.0.wieght: unknown key (did you mean 'weight'?)"),
        ([{"path": "a", "weight": 0}], "store.0.weight: expected above 0, found 0"),
        ([{"path": "a", "share": 1.5}], "store.0.share: expected at most 1, found 1.5"),
        ([{"path": "a"}, "b"], "store.1: expected a section with keys, found the text 'b'"),
        ([{"path": "x/a"}, {"path": "y/a"}], "store: 2 stores have the name 'a'; give each a `name` of its own"),
        ([], "store: the list of stores is empty; give at least one"),
    ],
)
def test_problems_of_a_list_name_the_entry(entries: Any, problem: str, write_list: Callable[..., Path]) -> None:
    with pytest.raises(InputError) as raised:
        load_stage(write_list(entries), "train", None)
    assert problem in str(raised.value) and "\n" not in str(raised.value)


def test_a_store_that_is_not_there_is_named(
    alignkd_here: Alignkd, two_stores: Any, write_list: Callable[..., Path]
) -> None:
    entries = [*two_stores, {"path": "nowhere/else"}]
    planned = alignkd_here("plan", write_list(entries))
    assert planned.returncode == 1 and "store nowhere/else: not there yet" in planned.stderr
    trained = alignkd_here("train", write_list(entries))
    assert trained.returncode == 1 and "store nowhere/else: not there yet; write it by `alignkd dump`" in trained.stderr


def test_an_output_inside_a_listed_store_is_refused(write_list: Callable[..., Path]) -> None:
    config = write_list([{"path": "a"}, {"path": "b"}], train={"output": "b/out"})
    with pytest.raises(InputError, match=r"train.output b/out lies in store.1.path b; choose a separate folder"):
        load_stage(config, "train", None)


def test_jobs_from_python_take_both_forms(write_config: WriteConfig) -> None:
    config = write_config()
    one = alignkd.train_job(config)
    assert one.stores == (TrainStore(path=one.store),)  # type: ignore[arg-type]
    several = alignkd.train_job(config, store=[{"path": "s3://bucket/one", "weight": 2}, {"path": "two", "name": "b"}])
    assert several.stores == (
        TrainStore(path="s3://bucket/one", weight=2.0),
        TrainStore(path=Path("two"), name="b"),
    )
    with pytest.raises(TypeError, match="section store is 'x', expected a mapping of keys, or a list of them"):
        alignkd.train_job(config, store="x")  # type: ignore[arg-type]


def test_chosen_samples_and_weights_of_domains(
    alignkd_here: Alignkd,
    alignkd_prepared: Alignkd,
    write_config: WriteConfig,
    write_list: Callable[..., Path],
    golden: Path,
    tmp_path: Path,
) -> None:
    """A list of `shards select`, and domains whose weights follow the student: `plan`, `train` and `report` of both."""
    samples, entries = json.loads((golden / "v1.json").read_text()), []
    for name, part in (("talk", samples[:2]), ("ask", samples[2:])):
        data, store = tmp_path / f"{name}.json", tmp_path / f"store-{name}"
        data.write_text(json.dumps(part))
        config = write_config(data={"conversations": str(data)}, store={"path": str(store)})
        dumped = alignkd_here("dump", config)
        assert dumped.returncode == 0, dumped.stderr
        entries.append({"path": str(store), "name": name})
    half = tmp_path / "half.json"
    chosen = alignkd_here("shards", "select", entries[0]["path"], "--by", "perplexity", "--ratio", "0.5", "--out", half)
    assert chosen.returncode == 0 and "1 of 2 samples kept" in chosen.stdout, chosen.stderr

    listed = [{**entries[0], "samples": str(half)}, entries[1]]
    steps: dict[str, Any] = {"steps": None, "epochs": 2, "micro_batch": 1, "global_batch": 3}
    (planned,) = plan_stages(write_list(listed, train=steps), None, PlanOptions())
    assert planned.per_pass == 3 and planned.steps == 2
    assert "store talk: 1 of 2 samples, chosen by perplexity" in planned.notes[0]
    trained = alignkd_prepared("train", write_list(listed, train=steps))
    assert trained.returncode == 0, trained.stderr
    assert "store talk: 1 of 2 samples, chosen by perplexity" in trained.stderr
    assert "samples by source: 2 of talk, 4 of ask" in trained.stdout
    wrong = [entries[0], {**entries[1], "samples": str(half)}]
    refused = alignkd_here("train", write_list(wrong, train=steps))
    assert refused.returncode == 1 and "half.json: was made for 2 samples of store" in refused.stderr

    weighted = {"domain_weights": "ddk", "steps": 2, "micro_batch": 1, "output": str(tmp_path / "ddk")}
    (with_weights,) = plan_stages(write_list(entries, train=weighted), None, PlanOptions())
    (without,) = plan_stages(write_list(entries, train=weighted | {"domain_weights": None}), None, PlanOptions())
    assert (with_weights.per_pass, without.per_pass) == (2, 4)
    assert with_weights.hours["t4"] > without.hours["t4"] and "follow the student (ddk)" in with_weights.notes[-1]
    trained = alignkd_prepared("train", write_list(entries, train=weighted))
    assert trained.returncode == 0, trained.stderr
    assert "domain ask: 1 samples, 1 more measure its weight (ddk, every 1000 steps)" in trained.stderr
    assert "step 0: weights of domains (nats per label of student, teacher): talk 0." in trained.stderr
    assert "source ask: mean weight" in alignkd_here("report", tmp_path / "ddk").stdout


@pytest.mark.parametrize(
    ("store", "drop", "problem"),
    [
        ([{"path": "a", "weight": 2.0}, {"path": "b"}], ("teacher",), r"ddk', which sets .* store a has a weight"),
        ([{"path": "a"}, {"path": "b"}], ("teacher",), None),
        ({"path": "a"}, (), r"ddk', but there is one data set, so one domain; give several"),
    ],
)
def test_domains_are_checked_before_the_teacher_runs(
    store: Any, drop: tuple[str, ...], problem: str | None, write_list: Callable[..., Path]
) -> None:
    config = write_list(store, drop=drop, train={"domain_weights": "ddk"})
    if problem is None:
        assert load_stage(config, "train", None).train is not None
        return
    with pytest.raises(InputError, match=problem):
        load_stage(config, "train", None)
