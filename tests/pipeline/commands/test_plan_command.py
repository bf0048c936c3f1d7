"""`alignkd plan` as users call it: one file, a recipe, no data yet, what it says when something is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import tiny_families
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from alignkd.pipeline.cli import main
from alignkd.pipeline.commands.plan import parse_bytes

WriteConfig = Callable[..., Path]
CONFIGS = Path(__file__).parents[3] / "pipeline" / "configs"
NO_DATA = ("--samples", "1200000", "--mean-tokens", "240")
GIB = 1 << 30


def plan(config: Path, *options: str) -> Any:
    found = CliRunner().invoke(main, ["plan", str(config), *options])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout) if "--json" in options else found.stdout


def refused(config: Path, *options: str) -> str:
    found = CliRunner().invoke(main, ["plan", str(config), *options])
    assert found.exit_code == 1 and len(found.stderr.splitlines()) == 1, found.output
    return found.stderr


def test_a_plan_holds_what_scripts_ask_for(write_config: WriteConfig) -> None:
    config = write_config(store={"logits": {"kind": "topk", "top_k": 6}})
    found = plan(config, "--json", "--gpu-memory", "24GiB", "--host-memory", "32GB", "--disk", "2TB")
    assert found["store_bytes"] == sum(found["store_bytes_by_target"].values()) > 100_000
    assert {"attention", "vision_top", "vision_all", "logits", "inputs"} <= found["store_bytes_by_target"].keys()
    assert 0 < found["teacher_memory_bytes"] < GIB and 0 < found["student_memory_bytes"] < GIB
    assert found["fits"] is True and found["fits_by"] == dict.fromkeys(
        ("store", "teacher", "student", "student_host"), True
    )
    sizes = (found["gpu_memory_bytes"], found["host_memory_bytes"], found["disk_bytes"])
    assert sizes == (24 * GIB, 32 * 10**9, 2 * 10**12)
    assert found["data"]["samples"] == found["data"]["records"] == 4 and found["data"]["counted_all"]
    assert {row["devices"] for row in found["student_memory_table"]} == {1, 2, 4, 8}
    assert found["recommendation"] == [] and found["measured"] is None
    page = plan(config, "--gpu-memory", "24GiB", "--host-memory", "32GB")
    assert "everything fits" in page and "(arithmetic)" in page and "assumed for the teacher pass" in page


def test_a_recipe_can_be_planned_before_there_is_data(tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text((CONFIGS / "short-rtx3060.yaml").read_text())
    assert "check the path; to plan before there is data, give --samples N and --mean-tokens T" in refused(config)
    page = plan(config, *NO_DATA, "--gpu-memory", "12GiB", "--host-memory", "32GB", "--disk", "2TB")
    assert page.count("1,200,000 samples (assumed)") == 2 and page.count("everything fits") == 2


def test_a_configuration_without_student_plans_the_dump_alone(write_config: WriteConfig) -> None:
    found = plan(write_config(drop=("student", "train")), "--json")
    assert found["student_memory_bytes"] is None and found["store_bytes"] > 0 and "student" not in found["fits_by"]


# the shapes of MobileVLM are known without files; other models need their config.json
@pytest.mark.parametrize(
    "recipe", sorted(path.stem for path in CONFIGS.glob("*.yaml") if "mtgv/MobileVLM" in path.read_text())
)
def test_every_recipe_can_be_planned_before_there_is_anything(recipe: str) -> None:
    memory = "12GiB" if "rtx3060" in recipe else "24GiB"
    found = plan(CONFIGS / f"{recipe}.yaml", "--json", *NO_DATA, "--gpu-memory", memory, "--host-memory", "32GB",
                 "--disk", "4TB")  # fmt: skip
    stages = found.get("stages", [found])
    assert [stage.get("stage") for stage in stages] == ([None] if recipe == "layers" else ["pretrain", "finetune"])
    assert found["store_bytes"] == sum(stage["store_bytes"] for stage in stages)
    assert found["fits"] is ("rtx" in recipe), [stage["recommendation"] for stage in stages]
    for stage in stages:
        assert any("no data was read" in note for note in stage["notes"])
        for step in stage["recommendation"]:
            assert step["set"] and step["bytes"] + GIB <= 24 * GIB
    one = stages[-1]
    if "stages" in found:
        one = plan(CONFIGS / f"{recipe}.yaml", "--json", *NO_DATA, "--stage", "finetune")
        assert one["stage"] == "finetune"
    assert one["hours"]["rtx3090"]["dump"] > 1


def test_the_plan_of_lora_is_what_its_recipe_names() -> None:
    """Figures of the recipe's comment, and what else changes with the choice of what is trained."""
    recipe = CONFIGS / "lora-rtx3090.yaml"
    whole = plan(recipe, "--json", *NO_DATA, "--gpu-memory", "24GiB", "--stage", "finetune")
    trained, parts = whole["trained"], whole["student_memory_by_part"]
    assert trained["parameters"] < 35e6 < 3.03e9 < trained["of"] < 3.05e9
    assert trained["checkpoint_bytes"] == 12 * (trained["parameters"] + trained["adapters"])
    assert parts["optimiser"] == 10 * (trained["parameters"] + trained["adapters"])
    comment = recipe.read_text()
    for size, line in (
        (whole["student_memory_bytes"], "together, at most"), (whole["student_host_bytes"], "The host needs"),
        (parts["weights"], "weights, bfloat16"), (parts["activations"], "activations of 32 layers"),
        (sum(parts[name] for name in ("optimiser", "gradients", "sums of gradients")), "rest of master weights"),
        (parts["head and logits"] + parts["attention loss"], "head and logits"),
    ):  # fmt: skip
        named = next(text for text in comment.splitlines() if line in text)
        assert f"{size / GIB:.1f} GiB" in named, (line, size / GIB)
    page = plan(recipe, *NO_DATA, "--stage", "finetune")
    assert "trains    LoRA of rank 16 on 224 linear layers and the projector: 34.2 M of 3,039 M parameters" in page
    ends = [len(line) for line in page.splitlines() if line.endswith(" per sample")]
    assert len(ends) > 2 and len(set(ends)) == 1, "columns"
    first = plan(recipe, *NO_DATA, "--stage", "pretrain")
    assert "trains    the projector: 9.21 M of 3,014 M parameters" in first


@pytest.mark.parametrize("choice", [{"trained": "all"}, {"lora": {"rank": 8}, "quantization": "nf4"}], ids=str)
def test_plans_of_other_choices(choice: dict[str, Any], tmp_path: Path) -> None:
    """Everything trained takes more than LoRA, and quantised weights less, by what the weights take less."""
    sections = yaml.safe_load((CONFIGS / "lora-rtx3090.yaml").read_text())
    plans = {}
    for name, student in (("lora", {"lora": {"rank": 8}}), ("other", choice)):
        sections["stages"][1]["student"] = student
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump(sections))
        plans[name] = plan(config, "--json", *NO_DATA, "--gpu-memory", "24GiB", "--stage", "finetune")
    lora, other = plans["lora"], plans["other"]
    if choice.get("trained") == "all":
        assert other["student_memory_by_part"]["optimiser"] > 30 * lora["student_memory_by_part"]["optimiser"]
        assert other["hours"]["h100"]["train"] > 1.2 * lora["hours"]["h100"]["train"]
        assert "everything but the vision tower" in other["trained"]["text"]
    else:
        less = lora["student_memory_by_part"]["weights"] - other["student_memory_by_part"]["weights"]
        # 32 layers of 4 x 2560^2 + 3 x 2560 x 6912 weights, the first layer's queries and keys left out
        quantised = 32 * (4 * 2560**2 + 3 * 2560 * 6912) - 2 * 2560**2
        assert less == pytest.approx(quantised * (2 - 0.5625), rel=1e-3)
        assert other["student_host_bytes"] >= lora["student_host_bytes"]


@pytest.mark.parametrize(("recipe", "family"), [("qwen3-vl-8b-to-2b", "qwen3_vl"), ("gemma3-12b-to-4b", "gemma3")])
def test_recipes_of_transformers_can_be_planned_with_their_checkpoints(
    recipe: str, family: str, tmp_path: Path
) -> None:
    """Small checkpoints of the family stand for those of the hub."""
    sections = yaml.safe_load((CONFIGS / f"{recipe}.yaml").read_text())
    for number, section in enumerate(("teacher", "student")):
        folder = tiny_families.build(family, tmp_path / section, seed=number)
        sections[section]["checkpoint"] = str(folder)
    config = tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump(sections))
    found = plan(config, "--json", *NO_DATA, "--image-tokens", "80", "--gpu-memory", "24GiB", "--disk", "4TB")
    assert found["data"]["mean_vision_tokens"] == 80 and found["data"]["mean_tokens"] == 240
    assert found["teacher_host_bytes"] > 0 and found["fits_by"]["teacher"] and found["student_memory_bytes"] > 0


def test_validation_is_in_the_hours(write_config: WriteConfig) -> None:
    """A forward pass of each sample, as often as there are validations; a held-out share is not trained on."""
    data = ("--samples", "1000", "--mean-tokens", "200")

    def hours(validation: dict[str, Any] | None, **length: Any) -> float:
        train = {"validation": validation, "micro_batch": 2, **(length or {"steps": 500})}
        config = write_config(train=train | ({"steps": None} if length else {}))
        found: float = plan(config, "--json", *data)["hours"]["l4"]["train"]
        return found

    plain = hours(None)
    records = plan(write_config(), "--json", *data)["data"]["records"]
    every = hours({"share": 0.1}) - plain  # before the first step, and ten times
    per_sample = every / (11 * 0.1 * records)
    assert plain / 1000 / 4 < per_sample < plain / 1000
    some = hours({"data": {"conversations": "c.json"}, "max_samples": 20, "at_start": False, "every": 100}) - plain
    assert some == pytest.approx(5 * 20 * per_sample)
    assert hours({"data": {"conversations": "c.json"}}) == plain  # of unknown size
    trained = hours({"share": 0.5, "max_samples": 1, "every": 10**6, "at_start": False}, epochs=1)
    assert trained == pytest.approx(hours(None, epochs=1) / 2 + per_sample, rel=0.01)


def test_the_stem_is_recommended_where_the_towers_are_the_same(write_config: WriteConfig, another_tower: Path) -> None:
    data = ("--samples", "1000", "--mean-tokens", "200")  # with four samples the stem is larger than what it saves
    config = write_config()
    found = plan(config, "--json", *data)["stem"]
    assert found["usable"] is True and found["recommended"] is True and not found["used"]
    assert 0 < found["operations_share"] < 1
    page = plan(config, *data)
    assert "usable: teacher and student share" in page and "recommended: set store.profile: stem" in page
    whole = plan(config, "--json", *data)
    short = str(whole["store_bytes_by_profile"]["stem"] + 1)
    assert plan(config, "--json", *data, "--disk", short)["recommendation"][0]["set"] == {"store.profile": "stem"}

    codecs = dict.fromkeys(("attention", "vision_top", "vision_all"), "stem")
    chosen = plan(write_config(store=codecs), "--json", *data)
    assert chosen["stem"]["used"] and not chosen["stem"]["recommended"]
    assert chosen["student_memory_bytes"] == whole["student_memory_bytes"] + found["device_bytes"]
    assert chosen["hours"]["l4"]["train"] == pytest.approx(
        whole["hours"]["l4"]["train"] * (1 + found["operations_share"])
    )

    found = plan(write_config(student={"checkpoint": str(another_tower)}), "--json", *data)
    assert found["stem"]["usable"] is False and "weights of the vision towers differ" in found["stem"]["reason"]
    assert not found["stem"]["recommended"]
    refused_plan = plan(write_config(student={"checkpoint": str(another_tower)}), "--json", *data, "--disk", short)
    assert "stem" not in json.dumps(refused_plan["recommendation"])
    unknown = plan(CONFIGS / "short.yaml", "--json", *data, "--stage", "pretrain")["stem"]
    assert unknown["usable"] is None and "alignkd train" in unknown["reason"]


def test_a_run_with_another_tower_is_refused_before_the_teacher(
    write_config: WriteConfig, another_tower: Path, tmp_path: Path
) -> None:
    config = write_config(store={"attention": "stem"}, student={"checkpoint": str(another_tower)})
    found = CliRunner().invoke(main, ["run", str(config)])
    assert found.exit_code == 1 and len(found.stderr.splitlines()) == 1
    assert "weights of the vision towers differ in float32" in found.stderr and "store.attention" in found.stderr
    assert not (tmp_path / "store").exists()


def test_advice_followed_makes_it_fit(tmp_path: Path) -> None:
    import yaml

    recipe = CONFIGS / "short.yaml"
    options = (
        "--json",
        *NO_DATA,
        "--stage",
        "finetune",
        "--gpu-memory",
        "24GiB",
        "--host-memory",
        "32GB",
        "--disk",
        "2TB",
    )
    (step,) = plan(recipe, *options)["recommendation"]
    values = yaml.safe_load(recipe.read_text())
    for key, value in step["set"].items():
        section, name = key.split(".")
        values[section][name] = value
    followed = tmp_path / "followed.yaml"
    followed.write_text(yaml.safe_dump(values))
    found = plan(followed, *options)
    assert found["fits"] and found["student_memory_bytes"] == step["bytes"]


def changed_recipe(path: Path, **train: Any) -> Path:
    """`short-rtx3090` with other settings of training."""
    import yaml

    values = yaml.safe_load((CONFIGS / "short-rtx3090.yaml").read_text())
    if "micro_batch" in train:
        del values["train"]["token_budget"]
    values["train"] |= train
    path.write_text(yaml.safe_dump(values))
    return path


OFFLOADED: dict[str, Any] = {"optimizer": "adamw_offload", "gradient_checkpointing": True, "micro_batch": 16}


def test_a_host_that_is_too_small_is_said_before(tmp_path: Path) -> None:
    recipe = changed_recipe(tmp_path / "offloaded.yaml", **OFFLOADED)
    options = ("--json", *NO_DATA, "--stage", "finetune", "--gpu-memory", "24GiB", "--disk", "2TB")
    found = plan(recipe, *options, "--host-memory", "24GiB")
    assert found["fits"] is False and found["fits_by"]["student"] and not found["fits_by"]["student_host"]
    (step,) = found["recommendation"]
    assert step["set"] == {
        "train.micro_batch": 4, "train.optimizer": "adamw_8bit", "train.gradient_checkpointing": False
    }  # fmt: skip
    page = plan(recipe, *options[1:], "--host-memory", "24GiB")
    assert "for the system on 24.0 GiB: DOES NOT FIT" in page
    assert "train.gradient_checkpointing: false, which needs bitsandbytes  (then 19" in page
    (step,) = plan(recipe, *options, "--host-memory", "5GiB")["recommendation"]
    assert (
        step["for"] == "student" and not step["set"] and "at least" in step["say"] and "of host memory" in step["say"]
    )
    # a device that holds the optimiser's state needs no offloading
    larger = ("--gpu-memory", "80GiB", "--host-memory", "24GiB")
    (step,) = plan(recipe, *options, *larger)["recommendation"]
    settings = {"optimizer": "adamw", "gradient_checkpointing": False}
    assert step["set"] == {"train.micro_batch": 16, **{f"train.{name}": value for name, value in settings.items()}}
    followed = changed_recipe(tmp_path / "followed.yaml", micro_batch=16, **settings)
    found = plan(followed, *options, *larger)
    assert found["fits"] and found["student_host_bytes"] == step["host_bytes"]
    assert found["student_memory_bytes"] == step["bytes"]


def test_what_takes_less_time_is_said_if_it_fits(tmp_path: Path) -> None:
    recipe = changed_recipe(tmp_path / "offloaded.yaml", **OFFLOADED)
    options = (*NO_DATA, "--stage", "finetune", "--disk", "2TB", "--host-memory", "64GiB")
    found = plan(recipe, "--json", *options, "--gpu-memory", "24GiB")
    assert found["fits"] and not found["recommendation"]
    assert found["faster"]["set"] == {
        "train.micro_batch": 4, "train.optimizer": "adamw_8bit", "train.gradient_checkpointing": False
    }  # fmt: skip
    page = plan(recipe, *options, "--gpu-memory", "24GiB")
    assert "everything fits\ntraining takes less time if you set train.micro_batch: 4, train.optimizer: adamw_8" in page
    followed = changed_recipe(
        tmp_path / "followed.yaml", micro_batch=4, optimizer="adamw_8bit", gradient_checkpointing=False
    )
    assert plan(followed, "--json", *options, "--gpu-memory", "24GiB")["faster"] is None
    assert plan(recipe, "--json", *options, "--gpu-memory", "11GiB")["faster"] is None  # nothing else fits


def test_what_is_missing_is_said_in_one_line(write_config: WriteConfig, tmp_path: Path) -> None:
    assert "teacher: section is missing, alignkd plan needs it" in refused(write_config(drop=("teacher",)))
    gone = write_config(data={"conversations": str(tmp_path / "none.json")})
    assert "none.json" in refused(gone)
    assert "--samples needs --mean-tokens" in refused(gone, "--samples", "10")
    assert "device is 'tpu', expected one of" in refused(write_config(), "--device", "tpu")
    divided = write_config(train={"micro_batch": 2, "global_batch": 4})
    assert "global_batch 4 is not a multiple of micro_batch 2 x 3 devices = 6" in refused(divided, "--devices", "3")
    assert "no stage 'third'" in refused(CONFIGS / "short.yaml", *NO_DATA, "--stage", "third")
    wrong = CliRunner().invoke(main, ["plan", str(gone), "--disk", "much"])
    assert wrong.exit_code == 2 and "expected a size such as 24GiB or 2TB" in wrong.stderr


def test_a_size_without_its_unit_is_refused() -> None:
    """`--gpu-memory 24` is 24 bytes, on which nothing fits."""
    assert parse_bytes(CONTEXT, PARAMETER, "1.5GB") == 1_500_000_000
    assert parse_bytes(CONTEXT, PARAMETER, "1MB") == 1_000_000  # small, but with its unit
    for text in ("24", "0", "24B"):
        with pytest.raises(click.BadParameter, match=f"'{text}' is .* bytes; write the unit, such as 24GiB or 2TB"):
            parse_bytes(CONTEXT, PARAMETER, text)


@given(st.integers(1050, 10**6), st.sampled_from(["K", "M", "G", "T"]), st.booleans(), st.booleans())
def test_sizes_are_read_as_they_are_written(number: int, prefix: str, binary: bool, lower: bool) -> None:
    text = f"{number}{prefix}{'i' if binary else ''}B"
    scale = (1024 if binary else 1000) ** ["", "K", "M", "G", "T"].index(prefix)
    assert parse_bytes(CONTEXT, PARAMETER, text.lower() if lower else text) == number * scale


CONTEXT, PARAMETER = click.Context(main), click.Option(["--size"])


def test_more_samples_than_a_store_has(write_config: WriteConfig) -> None:
    line = refused(write_config(), "--samples", "1000000000000", "--mean-tokens", "240")
    assert "--samples is 1000000000000, but a store has at most 134217728 samples; give fewer" in line


@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_numbers_that_are_none(value: str, write_config: WriteConfig) -> None:
    for options in (("--mean-tokens", value), ("--mean-tokens", "240", "--supervised-share", value)):
        found = CliRunner().invoke(main, ["plan", str(write_config()), "--samples", "10", *options])
        assert found.exit_code == 2 and f"Invalid value for '{options[-2]}'" in found.output, found.output
