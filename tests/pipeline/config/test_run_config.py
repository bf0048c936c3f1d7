"""Relations between the sections of a configuration, refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkd.pipeline.config.run_config import Command, RunConfig, load_run_config
from alignkd.vlm.errors import InputError

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"conversations": "data.json"},
    "teacher": {"checkpoint": "teacher"},
    "student": {"checkpoint": "student"},
    "store": {"path": "store"},
    "train": {"output": "out", "steps": 1},
}


def load(folder: Path, command: Command = "run", drop: tuple[str, ...] = (), **changes: Any) -> RunConfig:
    path = folder / "run.yaml"
    sections = {name: SECTIONS[name] | changes.get(name, {}) for name in SECTIONS if name not in drop}
    path.write_text(yaml.safe_dump(sections))
    return load_run_config(path, command)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"store": {"logits": {"kind": "sampled"}}}, ["train.losses.logit_divergence is 'reverse_kl'", "'sampled'"]),
        (
            {"store": {"logits": {"kind": "sampled"}}, "train": {"losses": {"temperature": 2.0}}},
            ["logit_divergence is 'reverse_kl'", "train.losses.temperature is 2.0"],
        ),
        ({"store": {"profile": "compact"}, "train": {"losses": {"temperature": 2.0}}}, ["temperature", "'nucleus'"]),
        ({"train": {"losses": {"temperature": 2.0}}}, ["temperature is 2.0", "'nucleus'"]),
        (
            {"store": {"attention": "none", "logits": {"kind": "sampled"}}},
            ["weighs attention", "logit_divergence is 'reverse_kl'"],
        ),
        ({"store": {"profile": "exact", "vision_all": "none"}}, ["store: vision_top is 'from_all'"]),
        ({"train": {"losses": {"effect": 1.0}}}, ["train.losses.effect is 1.0", "pass is not stored"]),
        ({"train": {"preference": None}}, ["1 problem: train.preference: expected 'dpo'", "or 'none'"]),
        (
            {"store": {"counterfactual": {"remove": "image"}}, "train": {"losses": {"keep": 1.0}}},
            ["train.losses.keep is 1.0", "remove 'image'", "remove focus"],
        ),
        ({"store": {"counterfactual": {"remove": "image", "share": 0.5}}}, ["store.counterfactual: share is 0.5"]),
        (
            {"train": {"losses": {"logit_divergence": "taid"}}},
            ["losses.logit_divergence is 'taid'", "'nucleus'", "set it to 'bucketed'", "no bound"],
        ),
        (
            {"train": {"losses": {"logit_divergence": "bild"}}},
            ["losses.logit_divergence is 'bild'", "'nucleus'", "losses.bild.lead to 'teacher'"],
        ),
        (
            {"train": {"losses": {"logit_divergence": "sinkhorn"}}},
            ["losses.sinkhorn.temperature 1.0 only, found 2.0", "'nucleus'"],
        ),
        ({"train": {"losses": {"ofa_gamma": 1.5}}}, ["train.losses: ofa_gamma is 1.5", "leave ofa_gamma out"]),
        ({"train": {"losses": {"logit_divergence": "bild", "bild": {"k": 2}}}}, ["train.losses.bild.k", "3"]),
        ({"train": {"losses": {"visual_logit": 1.0}}}, ["weighs visual_logit", "store.vision_states"]),
        ({"train": {"losses": {"relation": 1.0}}}, ["weighs relation", "store.vision_relations"]),
        (
            {
                "store": {"vision_relations": "float16", "relations_of": "layer_3"},
                "train": {"losses": {"relation": 1.0, "relations_of": "layer_2", "relations_layer": 1}},
            },
            ["weighs relation", "store.relations_of layer_2"],
        ),
        ({"train": {"losses": {"nd": 1.0}}}, ["train: losses.nd is 1.0, but centres is not given"]),
        (
            {"train": {"losses": {"nd": 1.0}, "centres": "centres.safetensors"}},
            ["weighs nd", "store.state_norms"],
        ),
        ({"store": {"attention": "flat16"}}, ["store.attention: expected one of", "found 'flat16'"]),
    ],
)
def test_refused_in_one_line(changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, **changes)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"store": {"logits": {"kind": "sampled"}}, "train": {"losses": {"logit_divergence": "forward_kl"}}},
        {"store": {"logits": {"kind": "sampled"}}, "train": {"preset": "supervised"}},
        {"store": {"profile": "exact"}, "train": {"losses": {"temperature": 2.0}}},
        {"store": {"profile": "exact"}, "train": {"losses": {"logit_divergence": "taid"}}},
        {"train": {"losses": {"logit_divergence": "taid", "taid": {"form": "bucketed"}}}},
        {"train": {"losses": {"logit_divergence": "bild", "bild": {"lead": "teacher"}}}},
        {"train": {"losses": {"logit_divergence": "sinkhorn", "sinkhorn": {"temperature": 1.0}}}},
        {"store": {"profile": "compact", "inputs": "embed", "backend": "webdataset"}},
        {"store": {"counterfactual": {}}, "train": {"losses": {"effect": 1.0, "keep": 1.0}}},
        {"store": {"counterfactual": {"remove": "image"}}, "train": {"losses": {"effect": 1.0}}},
        {"store": {"vision_relations": "int8_unit"}, "train": {"losses": {"relation": 1.0}}},
        {"store": {"vision_states": "int8_group"}, "train": {"losses": {"relation": 1.0, "visual_logit": 1.0}}},
        {"train": {"losses": {"relation": 1.0, "relations_of": "projector"}}},
        {
            "store": {"logits": {"kind": "hidden"}},
            "train": {"losses": {"nd": 1.0}, "centres": "centres.safetensors"},
        },
    ],
)
def test_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    config = load(tmp_path, **changes)
    assert config.train_job().images is None and config.dump_job().data[0].images is None


def test_training_from_a_store_of_another_configuration_is_left_to_the_store(tmp_path: Path) -> None:
    """What is in the store then stands in its manifest alone."""
    changes: dict[str, Any] = {"train": {"losses": {"temperature": 2.0}}, "store": {"path": "s3://bucket/store"}}
    assert load(tmp_path, "train", drop=("teacher",), **changes).train_job().store == "s3://bucket/store"
    with pytest.raises(InputError, match="temperature"):
        load(tmp_path, "train", drop=("teacher",), **{**changes, "store": {"logits": {"kind": "topk"}}})
