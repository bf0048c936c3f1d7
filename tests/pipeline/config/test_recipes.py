"""Recipes of several stages: how stages inherit, what they hand over, and a run of two from beginning to end."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from alignkd.pipeline.cli import main
from alignkd.pipeline.config.recipes import load_stage, load_stages
from alignkd.pipeline.configs.catalogue import recipe_text, recipe_titles
from alignkd.pipeline.runs import stages as run_stages
from alignkd.pipeline.runs.phase_process import run_alignkd
from alignkd.student_train.objective.attention.layer_map import layer_pairs
from alignkd.teacher_dump.settings.attention import AttentionConfig
from alignkd.vlm.attention.layer_choice import chosen_layers
from alignkd.vlm.errors import InputError

Alignkd = Callable[..., "CompletedProcess[str]"]
WriteRecipe = Callable[..., Path]


@pytest.fixture
def write_recipe(write_config: Callable[..., Path], golden: Path, tmp_path: Path) -> WriteRecipe:
    """write_recipe(first={...}, second={...}): captions, then conversations; a stage's sections changed as given."""

    def write(**changes: Any) -> Path:
        path = write_config("recipe.yaml")
        shared = yaml.safe_load(path.read_text())
        shared["train"] = {"micro_batch": 2, "adapter_init": "mean_of_heads", "report_to": "none"}
        del shared["store"]["path"]
        data = {"first": ("plain.json", "plain"), "second": ("v1.json", "v1")}
        stages = [
            {
                "name": name,
                "data": {"conversations": str(golden / file), "template": template},
                "store": {"path": str(tmp_path / f"store-{name}")},
                "train": {"output": str(tmp_path / name), "epochs": 1},
            }
            | changes.get(name, {})
            for name, (file, template) in data.items()
        ]
        path.write_text(yaml.safe_dump(shared | {"stages": stages} | changes.get("shared", {})))
        return path

    return write


def test_a_stage_starts_from_what_the_one_before_writes(
    write_recipe: WriteRecipe, golden: Path, tmp_path: Path
) -> None:
    first, second = load_stages(write_recipe(), "run")
    assert [first.name, second.name] == ["first", "second"]
    assert first.config.student is not None and first.config.train is not None
    assert second.config.student is not None and second.config.train is not None
    assert first.config.student.checkpoint == str(golden / "student") and first.config.train.adapters is None
    assert second.config.student.checkpoint == str(tmp_path / "first" / "student")
    assert second.config.train.adapters == tmp_path / "first" / "adapters.safetensors"
    # what stands beside `stages` holds for both, and a stage's own keys do not hide their neighbours
    assert second.config.student.vision_config == golden / "clip"
    assert second.config.train.micro_batch == 2 and second.config.data[0].images == first.config.data[0].images
    assert [stage.config.template for stage in (first, second)] == ["plain", "v1"]


def test_a_stages_own_keys_win(write_recipe: WriteRecipe, golden: Path, tmp_path: Path) -> None:
    own = {
        "student": {"checkpoint": str(golden / "student")},
        "train": {"output": str(tmp_path / "other"), "steps": 3, "adapters": None, "micro_batch": 1},
    }
    config = load_stage(write_recipe(second=own), "train", "second")
    assert config.student is not None and config.train is not None
    assert config.student.checkpoint == str(golden / "student")
    assert (config.train.adapters, config.train.steps, config.train.micro_batch) == (None, 3, 1)


@pytest.mark.parametrize("empty", [None, {}])
def test_an_empty_section_hides_nothing(empty: Any, write_recipe: WriteRecipe, golden: Path, tmp_path: Path) -> None:
    changes = {"second": {"student": empty, "store": {"path": str(tmp_path / "s"), "logits": empty}}}
    config = load_stage(write_recipe(**changes), "train", "second")
    assert config.student is not None and config.student.vision_config == golden / "clip"
    assert config.store.logits.kind == "full"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"second": {"train": {"output": "{first}", "steps": 1}}}, "stages first and second: both have train.output"),
        ({"second": {"name": "first"}}, "stage 2 has name 'first'"),
        ({"second": {"name": "a/b"}}, "stage 2 has name 'a/b'"),
        ({"shared": {"stages": {}}}, r"stages is '\{\}', expected a list"),
        ({"second": {"train": {"output": "x", "epoch": 1}}}, r"stage second: train\.epoch: unknown key .*'epochs'"),
        (
            {"first": {"store": {}}, "second": {"data": {"conversations": "x", "template": "v2"}}},
            r"2 problems: stage first: store\.path: missing; stage second: data\.template: .*'v2'",
        ),
    ],
)
def test_every_problem_is_one_line_and_names_the_stage(
    changes: dict[str, Any], named: str, write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    text = json.dumps(changes).replace("{first}", str(tmp_path / "first"))
    with pytest.raises(InputError, match=named) as error:
        load_stages(write_recipe(**json.loads(text)), "run")
    assert "\n" not in str(error.value)


def test_a_stage_is_chosen_by_name(write_recipe: WriteRecipe, write_config: Callable[..., Path]) -> None:
    recipe, single = write_recipe(), write_config()
    assert load_stage(recipe, "dump", "second").template == "v1"
    with pytest.raises(InputError, match="has stages first, second; choose one with --stage"):
        load_stage(recipe, "dump", None)
    with pytest.raises(InputError, match="no stage 'third'; its stages are first, second"):
        load_stage(recipe, "dump", "third")
    with pytest.raises(InputError, match="has no stages, but --stage is 'first'; leave --stage out"):
        load_stage(single, "dump", "first")
    assert [stage.name for stage in load_stages(single, "run")] == [None]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """in_process("run", path): the command and its phases in this process, which has imported everything already."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)

    def phase(arguments: list[str], as_json: bool, launcher: list[str]) -> Any:
        done = invoke(*arguments, *(["--json"] if as_json else []))
        if done.exit_code:
            sys.stderr.write(done.stderr)
            sys.exit(done.exit_code)
        return json.loads(done.stdout) if as_json else None

    monkeypatch.setattr(run_stages, "run_alignkd", phase)
    return invoke


def test_a_run_of_two_stages_and_the_same_again(
    in_process: Callable[..., Result], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe = write_recipe()
    finished = in_process("run", recipe, "--json")
    assert finished.exit_code == 0, finished.stderr
    reports = json.loads(finished.stdout)
    assert {name: list(found) for name, found in reports.items()} == {
        name: ["dump", "verify", "train"] for name in ("first", "second")
    }
    # Adam's first steps are at most the learning rate each: the second stage went on from the first one's adapters
    before, after = (load_file(tmp_path / stage / "adapters.safetensors") for stage in ("first", "second"))
    assert 0 < max(float((after[name] - value).abs().max()) for name, value in before.items()) < 1e-3
    assert json.loads((tmp_path / "second" / "run.json").read_text())["train"]["adapters"] == str(
        tmp_path / "first" / "adapters.safetensors"
    )

    shutil.rmtree(tmp_path / "store-first")  # a finished stage's store may go
    again = in_process("run", recipe)
    assert again.exit_code == 0, again.stderr
    assert re.findall(r"stage (\w+): nothing left to do: (\d+) steps", again.stdout) == [
        (name, str(reports[name]["train"]["step"])) for name in ("first", "second")
    ]

    # the last stage's student is gone: made again without the teacher
    exported = (tmp_path / "second" / "student" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "second" / "student")
    made_again = in_process("run", recipe)
    assert made_again.exit_code == 0, made_again.stderr
    assert "alignkd dump" not in made_again.stdout and "alignkd train" in made_again.stdout
    assert "nothing left to do: 2 steps are done, student in" in made_again.stdout
    assert (tmp_path / "second" / "student" / "model.safetensors").read_bytes() == exported

    # another student under the same name: the second stage is not taken for finished
    weights = tmp_path / "first" / "student" / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    replaced = in_process("run", recipe)
    assert replaced.exit_code == 1 and "student_weights was" in replaced.stderr
    weights.write_bytes(original)

    changed = write_recipe(second={"train": {"output": str(tmp_path / "second"), "epochs": 2}})
    refused = in_process("run", changed)
    assert refused.exit_code == 1 and len(refused.stderr.splitlines()) == 1
    assert "steps was 2, is 4; restore it, or train further into a new output with train.extend" in refused.stderr


@pytest.mark.parametrize(("name", "flags"), [("torchrun", ["-m"]), ("deepspeed", ["--no_local_rank", "--module"])])
def test_a_launcher_starts_the_module(name: str, flags: list[str], tmp_path: Path) -> None:
    """A stand-in that writes down what it is asked to start; its chatter does not get into a report."""
    launcher = tmp_path / name
    launcher.write_text(f'#!/bin/sh\necho chatter\necho "$@" > {tmp_path}/started\n')
    launcher.chmod(0o755)
    run_alignkd(["train", "run.yaml"], False, [str(launcher), "--nproc", "2"])
    asked = (tmp_path / "started").read_text().split()
    assert asked == ["--nproc", "2", *flags, "alignkd.pipeline.cli", "train", "run.yaml"]


@pytest.mark.parametrize("name", ["long", "long-rtx3090", "short", "short-rtx3060", "short-rtx3090"])
def test_shipped_recipes_are_the_papers(name: str, tmp_path: Path) -> None:
    assert name in recipe_titles()
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(name))
    pretrain, finetune = (stage.config for stage in load_stages(path, "run"))
    assert [pretrain.template, finetune.template] == ["plain", "v1"]
    batches, rates = {256: 2e-5, 128: 4e-5}, {256: 1e-3, 128: None}
    for config in (pretrain, finetune):
        train = config.train
        assert train is not None and train.global_batch is not None
        assert config.max_tokens == (512 if name.startswith("short") else 2048)
        assert train.learning_rate == batches[train.global_batch]
        assert train.projector_learning_rate == rates[train.global_batch]
        assert (train.warmup_ratio, train.weight_decay, train.epochs, train.preset) == (0.03, 0.0, 1.0, "paper")
        of_card = {"rtx3060": "adamw_offload", "rtx3090": "adamw_8bit"}
        assert train.optimizer == of_card.get(name.rpartition("-")[2], "adamw") and not train.gradient_checkpointing
        for world_size in (1,) if "rtx" in name else (1, 2, 4, 8):
            assert train.accumulation_steps(world_size) >= 1


Planned = Callable[..., dict[str, Any]]
GIB = 1 << 30


@pytest.fixture
def planned(in_process: Callable[..., Result], tmp_path: Path) -> Planned:
    """planned("short", 240, token_budget=512): the plan of a recipe's first stage with other settings."""

    def make(name: str, tokens: int, *, card: str = "rtx3090", student: Any = None, **train: Any) -> dict[str, Any]:
        values = yaml.safe_load(recipe_text(name))
        values["train"] |= train
        values["student"] |= student or {}
        path = tmp_path / "planned.yaml"
        path.write_text(yaml.safe_dump(values))
        data = ("--samples", 1_200_000, "--mean-tokens", tokens, "--disk", "9TB", "--host-memory", "32GB")
        done = in_process("plan", path, "--stage", "pretrain", "--device", card, *data, "--json")
        assert done.exit_code == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return make


class Told:
    """Figures in the comment of a recipe."""

    def __init__(self, name: str) -> None:
        self.text = " ".join(recipe_text(name).replace("\n#", " ").split())

    def gib(self, pattern: str) -> Any:
        """The figure at `N` of a text, as one that another has to equal."""
        found = re.search(pattern.replace("N", r"([\d.]+) GiB"), self.text)
        assert found is not None, pattern
        return pytest.approx(float(found[1]) * GIB, abs=0.06 * GIB)


@pytest.mark.parametrize(("name", "tokens"), [("short-rtx3090", 240), ("long-rtx3090", 500)])
def test_memory_in_a_recipe_is_that_of_its_plan(name: str, tokens: int, planned: Planned) -> None:
    """On the card and on the host, and with other optimisers where the comment names them."""
    plan, told = planned(name, tokens), Told(name)
    assert plan["student_memory_bytes"] == told.gib("together, at most N")
    assert plan["student_host_bytes"] == told.gib("The host needs N")
    assert plan["fits"] and plan["gpu_memory_bytes"] == 24 * GIB and plan["faster"] is None
    others = {
        (row["optimizer"], row["gradient_checkpointing"]): row
        for row in plan["student_memory_table"]
        if row["devices"] == 1
    }
    assert others["adamw", True]["bytes"] == told.gib("which computes each layer twice: N")
    offloaded = others["adamw_offload", True]
    assert offloaded["bytes"] == told.gib("adamw_offload with gradient_checkpointing takes N")
    assert offloaded["host_bytes"] == told.gib("and N of the host")


def test_memory_in_the_recipe_for_12_gb_is_that_of_its_plan(planned: Planned) -> None:
    """And of the alternatives that its comment names, for Short and for Long."""
    name, card = "short-rtx3060", "rtx3060"
    plan, told = planned(name, 240, card=card), Told(name)
    assert plan["fits"] and plan["gpu_memory_bytes"] == 12 * GIB and plan["faster"] is None
    assert plan["student_memory_bytes"] == told.gib("together, at most N")
    assert plan["student_host_bytes"] == told.gib("The host needs N")
    assert plan["teacher_memory_bytes"] == told.gib("8 bits, which takes N")
    eight_bits = planned(name, 240, card=card, optimizer="adamw_8bit")["student_memory_by_part"]
    state = sum(eight_bits[part] for part in ("weights", "optimiser", "sums of gradients"))
    assert state == told.gib("adamw_8bit takes N without")
    lora = planned(name, 240, student={"lora": {"rank": 16}}, token_budget=2048, optimizer="adamw")
    assert lora["student_memory_bytes"] == told.gib("token_budget: 2048 it takes N")
    assert lora["student_host_bytes"] == told.gib("and N of the host")
    for pattern, fits, settings in (
        ("1024 would take N", False, {"token_budget": 1024}),
        ("8192 takes N", True, {"token_budget": 8192, "gradient_checkpointing": True}),
        ("1024 takes N", True, {"token_budget": 1024, "kernels": "liger"}),
    ):
        other = planned(name, 240, card=card, **settings)
        assert other["student_memory_bytes"] == told.gib(pattern) and other["fits"] is fits, settings
    again = {"optimizer": "adamw_offload", "gradient_checkpointing": True}
    assert planned("long-rtx3090", 500, **again)["student_memory_bytes"] == told.gib(
        "gradient_checkpointing is needed: N"
    )
    without = {"optimizer": "adamw_offload"}
    assert not planned("long-rtx3090", 500, card=card, **without)["fits_by"]["student"]


def test_memory_in_the_table_of_cards_is_that_of_the_plan(planned: Planned) -> None:
    """docs/memory.md: bytes of device and host in every row, and whether the card holds them."""
    text = (Path(__file__).parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) GB \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) == 7
    plans: dict[Any, dict[str, Any]] = {}
    for card, cells in rows:
        trained, optimizer, budget, again, *figures = (cell.strip(" `") for cell in cells.split("|"))
        for recipe, tokens, figure in (("short-rtx3090", 240, figures[0]), ("long-rtx3090", 500, figures[1])):
            settings = {"token_budget": int(budget)} | ({"optimizer": optimizer} if trained == "LoRA" else {})
            student = {"lora": {"rank": 16}} if trained == "LoRA" else {}
            key = (recipe, trained, budget)
            if key not in plans:
                plans[key] = planned(recipe, tokens, student=student, **settings)
            (row,) = (
                row
                for row in plans[key]["student_memory_table"]
                if (row["devices"], row["optimizer"], row["gradient_checkpointing"]) == (1, optimizer, again == "yes")
            )
            gib, _, refused = figure.partition(", ")
            assert row["bytes"] == pytest.approx(float(gib) * GIB, abs=0.06 * GIB), (card, cells)
            assert (row["bytes"] + GIB <= int(card) * GIB) is (refused != "does not fit"), (card, cells)
            assert row["host_bytes"] == pytest.approx(float(figures[2]) * GIB, abs=0.08 * GIB), (card, cells)


@pytest.mark.parametrize("name", sorted(recipe_titles()))
def test_every_recipe_can_be_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(name))
    assert all(stage.config.train is not None for stage in load_stages(path, "run"))


@pytest.mark.parametrize("name", sorted(recipe_titles()))
def test_every_recipe_ends_with_an_evaluation_if_its_mark_is_removed(name: str, tmp_path: Path) -> None:
    text, count = re.subn(r"^( *)# (eval: )", r"\1\2", recipe_text(name), flags=re.MULTILINE)
    assert count == 1
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    *others, last = (stage.config for stage in load_stages(path, "run"))
    assert [config.eval for config in others] == [None] * len(others)
    assert last.eval is not None and last.train is not None
    assert last.eval.data == Path("benchmark_data") and last.eval.folder(last.train.output).parent == last.train.output
    # float16 is the paper's; models of transformers run in the dtype of their checkpoints
    assert last.eval.dtype == ("float16" if others else "bfloat16")


def test_recipes_of_layers(tmp_path: Path) -> None:
    """The layers that their comments tell, of models with the layers of the named checkpoints."""
    found = {}
    for name, teachers, students in (
        ("layers-rtx3090", 32, 24), ("bands-rtx3090", 32, 24), ("qwen3-vl-8b-to-2b-bands", 36, 28),
    ):  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe_text(name))
        *_, config = (stage.config for stage in load_stages(path, "run"))
        teacher, student = (
            SimpleNamespace(num_layers=n, attention_layers=tuple(range(n)), attention_layer=0)
            for n in (teachers, students)
        )
        assert config.train is not None
        attention = config.store.attention
        assert isinstance(attention, AttentionConfig)
        stored = chosen_layers(
            attention.layers, num_layers=teachers, attention_layers=teacher.attention_layers, key="store.attention"
        )
        pairs = layer_pairs(config.train.losses.attention_layers, student, stored)  # type: ignore[arg-type]
        found[name] = {pair.student: pair.teacher for pair in pairs}
    assert found["layers-rtx3090"] == {0: (0,), 1: (1,)}
    band = found["bands-rtx3090"]
    assert list(band) == list(range(8, 17)) and band[8] == (10, 11, 12, 13, 14) and band[16] == (18, 19, 20, 21, 22)
    band = found["qwen3-vl-8b-to-2b-bands"]
    assert list(band) == list(range(9, 20)) and band[9] == (11, 12, 13, 14, 15) and band[10] == (12, 13, 14, 15, 16)


def test_a_recipe_is_listed_shown_and_copied_once(alignkd_here: Alignkd, tmp_path: Path) -> None:
    listed = json.loads(alignkd_here("configs", "--json").stdout)
    assert list(listed) == [
        "bands-rtx3090", "gemma3-12b-to-4b", "layers-rtx3090", "long", "long-rtx3090", "lora-rtx3090",
        "qwen3-vl-8b-to-2b", "qwen3-vl-8b-to-2b-bands", "short", "short-rtx3060", "short-rtx3090"
    ]  # fmt: skip
    assert "24 GB" in listed["short-rtx3090"]
    copy = tmp_path / "new" / "my.yaml"
    assert alignkd_here("configs", "short", "--out", copy).returncode == 0
    assert copy.read_text() == recipe_text("short")
    again = alignkd_here("configs", "short", "--out", copy)
    assert again.returncode == 1 and "already exists" in again.stderr
    unknown = alignkd_here("configs", "shirt")
    assert (
        unknown.returncode == 1
        and "choose one of bands-rtx3090, gemma3-12b-to-4b, layers-rtx3090, long" in unknown.stderr
    )
