"""Data with no, one and several images through the commands, as users run them."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from safetensors.numpy import load_file
from safetensors.torch import save_file

from alignkd.pipeline.cli import main
from alignkd.pipeline.demo.evaluate import Answer, Evaluation
from alignkd.storage import LogitsCodec, StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.weights.files import read_weights

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]
P = 144


def entry(number: int, images: list[str], question: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "yes, it is"}]
    return {"id": f"s{number}", **({"image": images} if images else {}), "conversations": turns}


ENTRIES = [
    entry(0, ["coffee.png", "chelsea.png"], "Is <image> like <image>?"),
    entry(1, [], "Name a color."),
    entry(2, ["rocket.jpg"], "<image>\nWhat is this?"),
    entry(3, ["chelsea.png", "rocket.jpg", "coffee.png"], "<image><image><image>\nAre these three?"),
    entry(4, ["chelsea.png", "rocket.jpg"], "<image>\nIs it?"),  # one placeholder too few
]


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_dump_look_and_train(
    alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path, golden_images: Path
) -> None:
    (tmp_path / "data.json").write_text(json.dumps(ENTRIES))
    config = write_config(
        data={"conversations": str(tmp_path / "data.json")},
        teacher={"sanity": "off"},
        store={
            "backend": "webdataset",
            "inputs": "embed",
            "attention": "sqrt_u8",
            "vision_top": "from_all",
            "vision_all": "int8_channel",
        },
        train={"steps": 2, "micro_batch": 4, "gradient_checkpointing": True, "data_workers": 1},
    )
    dumped = alignkd_here("dump", config, "--json")
    assert dumped.returncode == 0, dumped.stderr
    report = json.loads(dumped.stdout)
    assert report["num_records"] == 4
    [[index, name, reason]] = report["quarantined"]
    assert (index, name) == (4, "s4") and reason.startswith("1 <image> in the conversation but 2 images")

    path = tmp_path / "store"
    assert json.loads(run("shards", "verify", path, "--deep", "--json").stdout)["ok"]
    stats = json.loads(run("shards", "stats", path, "--json").stdout)
    assert (stats["records_with_image"], stats["distinct_images"]) == (3, 6)
    shown = json.loads(run("shards", "show", path, "--id", "s3", "--json").stdout)
    assert shown["num_images"] == 3 and shown["images"] == ENTRIES[3]["image"]
    assert [last - first + 1 for first, last in shown["vision_spans"]] == [P] * 3
    assert shown["input_pieces"].count("<image>") == 3 and len(shown["focus"]) == 16
    page = run("shards", "show", path, "--id", "s3").stdout
    assert all(image in page for image in ENTRIES[3]["image"]) and "image 3\n" in page
    picture = tmp_path / "look.png"
    run("shards", "show", path, "--id", "s0", "--png", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = tmp_path / "one.safetensors"
    run("shards", "export", path, "--id", "s0", "--out", out)
    tensors = load_file(out)
    assert tensors["vision_embeddings"].shape == (2 * P, 128) and tensors["vision_positions"].shape == (2 * P,)
    assert tensors["tqv_attention"].shape == (8, len(tensors["tqv_query_positions"]), 2 * P)
    assert 0 < tensors["tqv_attention"].sum(-1).max() <= 1.01
    assert tensors["image_bytes_1"].tobytes() == (golden_images / "chelsea.png").read_bytes()
    run("shards", "convert", path, tmp_path / "other", "--backend", "zarr")
    assert json.loads(run("shards", "diff", path, tmp_path / "other", "--json").stdout)["equal"]

    trained = alignkd_here("train", config)
    assert trained.returncode == 0, trained.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert all(line[term] > 0 for term in ("supervised", "logit", "attention", "vision_all", "vision_top"))
        kinds = [line[f"samples_{kind}"] for kind in ("one_image", "several_images", "text_only")]
        assert kinds == [1, 2, 1] and not line["skipped"]


def test_a_question_about_two_images(golden: Path, golden_images: Path) -> None:
    images = [golden_images / "coffee.png", golden_images / "chelsea.png"]
    options = ["--vision-config", golden / "clip", "--max-new-tokens", 4, "--device", "cpu", "--json"]

    def ask(question: str, *given: Path) -> dict[str, Any]:
        shown = [part for image in given for part in ("--image", image)]
        reply: dict[str, Any] = json.loads(run("ask", golden / "teacher", question, *shown, *options).stdout)
        return reply

    one, two = ask("Is it?", images[0]), ask("Is it?", *images)
    assert two["prompt_tokens"] > one["prompt_tokens"] + P
    assert one["question"]["images"] == [str(images[0])] and two["question"]["images"] == list(map(str, images))
    assert ask("<image>\n<image>\nIs it?", *images)["answer"] == two["answer"]
    too_few = ["ask", golden / "teacher", "<image> it?", "--image", images[0], "--image", images[1], *options]
    refused = CliRunner().invoke(main, list(map(str, too_few)))
    assert refused.exit_code == 1 and "1 <image> in the conversation but 2 images" in refused.stderr


def test_answers_about_several_images_come_back_from_json() -> None:
    said = {"question": "q", "question_type": None, "expected": "a", "found": "a"}
    answers = tuple(Answer(id="x", images=images, **said) for images in (("a.png", "b.png"), ("a.png",), ()))
    evaluation = Evaluation(answers)
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation


def test_two_projectors_with_one_number_of_tokens(golden: Path, golden_images: Path, tmp_path: Path) -> None:
    """A teacher with an MLP and a student with one linear layer: 576 tokens each."""
    for who, name in (("teacher", "mlp2x_gelu"), ("student", "linear")):
        folder = tmp_path / who
        shutil.copytree(golden / who, folder)
        raw = json.loads((folder / "config.json").read_text()) | {"mm_projector_type": name, "model_type": "llava"}
        (folder / "config.json").write_text(json.dumps(raw))
        fresh = new_model(load_config(folder, vision_config=golden / "clip"), seed=1).state_dict()
        kept = read_weights(golden / who)
        (folder / "pytorch_model.bin").unlink(missing_ok=True)
        save_file({key: kept.get(key, value).clone() for key, value in fresh.items()}, folder / "model.safetensors")
    (tmp_path / "data.json").write_text(json.dumps(ENTRIES[:3]))
    dumped = dump(
        DumpJob(
            data=(DataSet(path=tmp_path / "data.json", images=golden_images),),
            template="v1",
            max_tokens=None,
            teacher=TeacherConfig(checkpoint=str(tmp_path / "teacher"), vision_config=golden / "clip", sanity="off"),
            store=StoreConfig(path=tmp_path / "store", logits=LogitsCodec(kind="full")),
        )
    )
    assert dumped.num_records == 3 and StoreReader(tmp_path / "store").manifest.shapes.vision_tokens == 576
    out = tmp_path / "out"
    trained = train(
        TrainJob(
            student=tmp_path / "student",
            vision_config=golden / "clip",
            images=golden_images,
            store=tmp_path / "store",
            max_tokens=None,
            dtype="float32",
            # one step is text-only: the projector still gets its gradient of zeros
            train=TrainConfig(output=out, steps=3, micro_batch=1),
        )
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sorted(line["vision_all"] is not None for line in lines) == [False, True, True] and trained.step == 3
    exported = load_file(out / "student" / "model.safetensors")
    projector = {"model.mm_projector.weight", "model.mm_projector.bias"}
    assert {key for key in exported if "mm_projector" in key} == projector
    assert json.loads((out / "student" / "config.json").read_text())["model_type"] == "llava"
    before = read_weights(tmp_path / "student")
    assert all((exported[key] != before[key].numpy()).any() for key in projector)
