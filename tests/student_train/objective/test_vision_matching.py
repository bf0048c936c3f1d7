"""`losses.vision_matching`: students with other vision tokens than the teacher, and settings that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from alignkd.student_train.data.collate import collate
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.inputs.batch import collate_sequences

OFF = {"attention": 0.0, "vision_all": 0.0, "vision_top": 0.0, "logit": 0.0}
TWO_IMAGES = {
    "id": "two",
    "image": ["coffee.png", "chelsea.png"],
    "conversations": [{"from": "human", "value": "Is <image> like <image>?"}, {"from": "gpt", "value": "no"}],
}


@pytest.fixture(scope="module")
def vision_store(golden_folder: Path, images_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden samples and one with two images: states and cosines in float32."""
    folder = tmp_path_factory.mktemp("matching")
    data = folder / "data.json"
    data.write_text(json.dumps([*json.loads((golden_folder / "v1.json").read_text()), TWO_IMAGES]))
    kept = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
    exact = {"vision_states": "float32", "vision_text_affinity": "float32"}
    dump(
        DumpJob(
            data=(DataSet(path=data, images=images_folder),),
            template="v1",
            max_tokens=2048,
            teacher=TeacherConfig(
                checkpoint=str(golden_folder / "teacher"), vision_config=golden_folder / "clip", sanity="off"
            ),
            store=StoreConfig(path=folder / "store", shard_size=3, **kept, **exact),  # type: ignore[arg-type]
        )
    )
    return folder / "store"


@pytest.fixture(scope="module")
def wide_student(golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden student with LLaVA's projector, which makes 576 tokens of an image; the teacher's makes 144."""
    source, folder = golden_folder / "student", tmp_path_factory.mktemp("wide") / "student"
    folder.mkdir()
    raw = json.loads((source / "config.json").read_text()) | {"mm_projector_type": "mlp2x_gelu"}
    (folder / "config.json").write_text(json.dumps(raw))
    model = new_model(load_config(folder, vision_config=golden_folder / "clip"), seed=1)
    weights = {
        name: values for name, values in load_file(source / "model.safetensors").items() if "projector" not in name
    }
    model.load_state_dict(weights, strict=False)
    save_model(model, folder, tokenizer_from=source)
    return folder


def test_a_student_with_other_vision_tokens(
    vision_store: Path, wide_student: Path, make_job: Callable[..., TrainJob], teacher: MobileVLM
) -> None:
    """Each of the teacher's 144 tokens of an image has a partner among the student's 576."""
    losses = {**OFF, "vsd": 0.25, "vlad": 25.0, "vision_matching": "hungarian"}
    job = TrainJob(**vars(make_job(vision_store, losses=losses)) | {"student": wide_student})
    checkpoint = job.open_student()
    samples = open_samples(job, checkpoint)
    student = build_student(job, checkpoint, samples.reader)
    assert isinstance(student.model, MobileVLM)
    positions = [*range(len(samples))]
    batch = collate(
        [samples[n] for n in positions], targets=job.train.losses.needed_targets.values(), attention_pairs="tqv"
    )
    found = student(batch)
    for position in positions:
        example, record = samples[position]
        own_P = torch.from_numpy(example.positions.vision_positions).long()
        own_Q = torch.from_numpy(example.positions.tqv_query_positions).long()
        assert len(own_P) == 576 * record.num_images and len(record.vision_positions) == 144 * record.num_images
        if not record.has_image:
            continue
        sequences = collate_sequences([example])
        with torch.no_grad():
            own = student.model.hidden_states(sequences, student.model.encode_images(sequences.images))[0]
        states, affinity = (torch.from_numpy(record.more[name]) for name in ("vision_states", "vision_text_affinity"))  # type: ignore[arg-type]
        vsd = vlad = 0.0
        for image in range(record.num_images):
            theirs_P = torch.arange(144 * image, 144 * (image + 1))
            logits = student.model.head(own[own_P[576 * image : 576 * (image + 1)]]), teacher.head(states[theirs_P])
            rows, columns = map(torch.from_numpy, linear_sum_assignment(torch.cdist(*logits, p=1.0).detach().numpy()))
            assert len(rows) == 144
            logq, logp = logits[0][rows].log_softmax(-1), logits[1][columns].log_softmax(-1)
            vsd += (logq.exp() * (logq - logp)).sum().item()
            chosen = own[own_P[576 * image : 576 * (image + 1)]][rows]
            cosines = functional.cosine_similarity(own[own_Q][:, None], chosen[None], dim=-1)
            vlad += functional.smooth_l1_loss(cosines, affinity[:, theirs_P][:, columns], reduction="sum").item()
        assert found["vsd"].parts[position].item() == pytest.approx(vsd, rel=1e-3)
        assert found["vlad"].parts[position].item() == pytest.approx(vlad, rel=1e-3)
    assert found["vsd"].count == 144 * samples.reader.num_images.sum()


def test_a_run_of_such_a_student_with_lora(
    vision_store: Path, wide_student: Path, make_job: Callable[..., TrainJob], read_metrics: Any
) -> None:
    losses = {**OFF, "vsd": 0.25, "vlad": 25.0}
    job = TrainJob(**vars(make_job(vision_store, steps=3, losses=losses)) | {"student": wide_student})
    refused = (
        r"144 tokens in the store, 576 in the student, so losses\.vsd, losses\.vlad have nothing to compare; .*, set "
    )
    with pytest.raises(TrainError, match=refused + "losses.vision_matching to hungarian, or take a student with"):
        train(job)
    job = make_job(vision_store, steps=3, micro_batch=5, losses=losses | {"vision_matching": "hungarian"})
    trained = TrainedConfig(trained="lora", lora={"rank": 4})  # type: ignore[arg-type]
    train(TrainJob(**vars(job) | {"student": wide_student, "trained": trained}))
    lines = read_metrics(job.train.output)
    assert lines[-1]["vsd"] < lines[0]["vsd"] and lines[-1]["vlad"] < lines[0]["vlad"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"vision_matching": "hungarian"},
            "vision_matching is 'hungarian', but vsd and vlad are 0, so nothing is matched; leave vision_matching out",
        ),
        ({"vision_matching": "nearest", "vsd": 1.0}, "Input should be 'place' or 'hungarian'"),
    ],
)
def test_settings_that_do_not_fit(settings: Any, line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        LossConfig(**settings)


def test_the_targets_that_a_matching_needs() -> None:
    assert LossConfig(**OFF, vlad=1.0).needed_targets == {"vlad": "vision_text_affinity"}
    matched = LossConfig(**OFF, vlad=1.0, vision_matching="hungarian").needed_targets
    assert matched == {"vlad": "vision_text_affinity", "vision_matching": "vision_states"}
    assert LossConfig(**OFF, vsd=1.0, vision_matching="hungarian").needed_targets == {"vsd": "vision_states"}
