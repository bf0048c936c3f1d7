"""A checkpoint as commands open it: found by its folder, with its own processor."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.huggingface.model import probe
from alignkd.vlm.families.open import open_checkpoint


@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl", "gemma3"])
def test_a_folder_is_opened_and_loaded(cases: dict[str, Any], name: str) -> None:
    checkpoint = open_checkpoint(cases[name].folder)
    assert checkpoint.family == "huggingface"
    model = checkpoint.load_model(dtype=torch.float32)
    assert not model.training
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert isinstance(checkpoint, HuggingFaceCheckpoint) and checkpoint.config.num_parameters == counted
    expected = 7 if name == "llava_onevision" else 6  # two images are also compared where they are encoded otherwise
    assert len(model.findings) == expected, model.findings


def test_the_samples_of_the_self_checks(cases: dict[str, Any]) -> None:
    found = probe.probe_examples(open_checkpoint(cases["qwen2_5_vl"].folder).preparation())
    assert [example.positions.num_images for example in found] == [1, 0, 2]
    lengths = {example.positions.length for example in found}
    assert len(lengths) == 3  # so that a batch is padded


def test_attachments_are_the_files_of_tokenizer_and_processor(cases: dict[str, Any]) -> None:
    folder: Path = cases["gemma3"].folder
    attached = open_checkpoint(folder).attachments()
    assert "processor/tokenizer.json" in attached and "processor/tokenizer_config.json" in attached
    assert all((folder / name.removeprefix("processor/")).read_bytes() == data for name, data in attached.items())


def test_a_template_of_another_family_is_refused(cases: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="template 'v1', but this checkpoint has its own chat template"):
        open_checkpoint(cases["gemma3"].folder).preparation("v1")
