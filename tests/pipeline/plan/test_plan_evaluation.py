"""`alignkd plan` on the section `eval`: questions, hours and weights, and what is missing to ask them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

GIB = 1 << 30
EVAL = Path(__file__).parents[2] / "golden" / "eval"
Alignkd = Callable[..., Any]
WriteConfig = Callable[..., Path]


def with_section(config: Path, **values: Any) -> Path:
    sections = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(sections | {"eval": values}))
    return config


def test_questions_are_those_of_the_files(alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name in ("gqa", "mme"):
        (root / name).symlink_to(EVAL / name / "data")
    config = with_section(write_config(), data=str(root), benchmarks="gqa,mme,pope", teacher=True)
    done = alignkd_here("plan", config)
    assert done.returncode == 0, done.stderr
    lines = {
        name: sum(1 for line in file.read_text().splitlines() if line.strip())
        for name, file in (("gqa", root / "gqa" / "llava_gqa_testdev_balanced.jsonl"),
                           ("mme", root / "mme" / "llava_mme.jsonl"))
    }  # fmt: skip
    assert (
        f"eval      student, teacher: {sum(lines.values())} questions each (gqa {lines['gqa']}, mme {lines['mme']}, "
        f"pope ?); answers and scores in {tmp_path / 'out' / 'eval'}"
    ) in done.stdout.splitlines()
    (problem,) = [line for line in done.stdout.splitlines() if "cannot be asked" in line]
    assert "pope" in problem and str(root) in problem
    found = json.loads(alignkd_here("plan", config, "--json").stdout)["evaluation"]
    assert found["questions"] == lines | {"pope": None} and len(found["problems"]) == 1
    limited = with_section(config, data=str(root), benchmarks="gqa", limit=5)
    assert json.loads(alignkd_here("plan", limited, "--json").stdout)["evaluation"]["questions"] == {"gqa": 5}


def test_without_the_section_there_is_no_line(alignkd_here: Alignkd, write_config: WriteConfig) -> None:
    config = write_config()
    assert not [line for line in alignkd_here("plan", config).stdout.splitlines() if line.startswith("eval ")]
    assert json.loads(alignkd_here("plan", config, "--json").stdout)["evaluation"] is None


@pytest.fixture
def planned(alignkd_here: Alignkd, tmp_path: Path) -> Callable[..., Any]:
    """planned(*options, **section): plan of the 7B teacher and the 1.7B student; with `page` as text."""
    model = {"dtype": "bfloat16"}
    sections = {
        "data": {"conversations": "train.json", "images": "images", "template": "v1", "max_tokens": 512},
        "teacher": {"checkpoint": "mtgv/MobileVLM_V2-7B", **model},
        "student": {"checkpoint": "mtgv/MobileVLM_V2-1.7B", **model},
        "store": {"path": str(tmp_path / "store"), "profile": "stem"},
        "train": {"output": str(tmp_path / "out"), "steps": 100, "micro_batch": 1, "optimizer": "adamw_offload"},
    }

    def plan(*options: str, page: bool = False, **section: Any) -> Any:
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump(sections | {"eval": {"benchmarks": "gqa", **section}}))
        words = ("--samples", "1000", "--mean-tokens", "240", "--host-memory", "64GiB", *options)
        done = alignkd_here("plan", config, *words, *(() if page else ("--json",)))
        assert done.returncode == 0, done.stderr
        return done.stdout if page else json.loads(done.stdout)

    return plan


@pytest.fixture
def gqa(tmp_path: Path) -> Path:
    """The golden questions on GQA, to be changed."""
    return Path(shutil.copytree(EVAL / "gqa" / "data", tmp_path / "gqa"))


def test_hours_are_those_of_prompts_and_of_each_image_once(planned: Callable[..., Any], gqa: Path) -> None:
    file = gqa / "llava_gqa_testdev_balanced.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    found = planned(data=str(gqa))
    images = len({line["image"] for line in lines})
    assert found["evaluation"]["images"] == {"gqa": images} and images > 10
    # 24 layers of 4 matrices of attention and 3 of the MLP; the vision tower is CLIP's ViT-L, 23 layers of it
    layers, tower = 24 * (4 * 2048**2 + 3 * 2048 * 5632), 23 * (4 * 1024**2 + 2 * 1024 * 4096)
    tokens = 36 + 144 + sum(len(line["text"].encode()) for line in lines) / 4 / len(lines)
    operations = len(lines) * 2 * layers * tokens + images * 2 * tower * 577
    hours = found["evaluation"]["hours"]["rtx3090"]
    assert hours == {"student": pytest.approx(operations / (0.45 * 71e12) / 3600, rel=0.1)}
    assert found["hours"]["rtx3090"]["eval"] == hours["student"]
    # the same questions about one image
    file.write_text("".join(json.dumps(line | {"image": lines[0]["image"]}) + "\n" for line in lines))
    less = operations - (images - 1) * 2 * tower * 577
    one = planned(data=str(gqa))["evaluation"]["hours"]["rtx3090"]["student"]
    assert one / hours["student"] == pytest.approx(less / operations, rel=0.05)


def test_all_models_are_added_up(planned: Callable[..., Any], gqa: Path) -> None:
    baseline = "mtgv/MobileVLM_V2-1.7B"
    found = planned(data=str(gqa), teacher=True, baseline=baseline)
    each = found["evaluation"]["hours"]["l4"]
    assert (
        list(each) == ["student", "baseline", "teacher"] and each["student"] == each["baseline"] < each["teacher"] / 3
    )
    assert found["hours"]["l4"]["eval"] == pytest.approx(sum(each.values()))
    page = planned(data=str(gqa), teacher=True, baseline=baseline, page=True)
    row = next(line for line in page.splitlines() if line.split()[:2] == ["l4", "dump"])
    assert "  eval " in row
    assert "the time of the answers is not planned" in page
    # none of them can be asked
    (gqa / "testdev_balanced_questions.json").unlink()
    (gqa / "llava_gqa_testdev_balanced.jsonl").unlink()
    assert planned(data=str(gqa))["hours"]["l4"]["eval"] == 0


def test_weights_that_do_not_fit_are_a_problem_of_the_plan(planned: Callable[..., Any], gqa: Path) -> None:
    """In `eval.dtype`, whatever the quantisation of the dump is."""
    found = planned("--gpu-memory", "24GiB", data=str(gqa), teacher=True)
    weights = found["evaluation"]["weight_bytes"]
    assert 13 * GIB < weights["teacher"] < 14 * GIB and 3 * GIB < weights["student"] < 4 * GIB
    assert found["fits"] and found["fits_by"]["eval"]
    wide = planned("--gpu-memory", "24GiB", data=str(gqa), teacher=True, dtype="float32")
    assert wide["evaluation"]["weight_bytes"]["teacher"] == 2 * weights["teacher"]
    assert not wide["fits"] and [name for name, fits in wide["fits_by"].items() if not fits] == ["eval"]
    (step,) = wide["recommendation"]
    assert step["for"] == "eval" and "weights of teacher do not fit in float32" in step["say"]
    assert "set eval.dtype: float16" in step["say"]
    page = planned("--gpu-memory", "24GiB", data=str(gqa), teacher=True, dtype="float32", page=True)
    assert (
        "on 24.0 GiB: DOES NOT FIT" in page and "eval: the weights of teacher" in page and "everything fits" not in page
    )
    assert planned("--gpu-memory", "24GiB", data=str(gqa), teacher=True, dtype="float32", device="cpu")["fits"]


def test_a_baseline_that_is_missing_is_named(planned: Callable[..., Any], gqa: Path, tmp_path: Path) -> None:
    (problem,) = planned(data=str(gqa), baseline=str(tmp_path / "nobody"))["evaluation"]["problems"]
    assert problem.startswith("eval.baseline: ") and "nobody" in problem
