"""Each family once: a tiny checkpoint, its samples, the model, and what transformers computes without this package."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from chosen_families import nine_first
from handmade_families import BUILDERS
from processed_samples import Processed, processed_samples
from torch import Tensor
from transformers import AutoModelForImageTextToText

from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel
from alignkd.vlm.families.huggingface.model.weights.loading import build_model
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences

FAMILIES = tuple(dict.fromkeys([*tiny_families.FAMILIES, *BUILDERS]))


@dataclass(frozen=True)
class Outputs:
    """One sample alone, eager, without padding: hidden [L, D], logits [L, V], attention [H, L, L]."""

    hidden: Tensor
    logits: Tensor
    attention: Tensor


@dataclass
class Case:
    name: str
    folder: Path
    samples: list[Processed]

    def load(self, dtype: torch.dtype = torch.float32, quantization: Quantization = "none") -> HuggingFaceModel:
        """A new model."""
        examples = [sample.example for sample in self.samples]
        return build_model(
            self.folder, self.checkpoint.config, examples, dtype=dtype, device="cpu", quantization=quantization
        )

    @cached_property
    def checkpoint(self) -> HuggingFaceCheckpoint:
        return HuggingFaceCheckpoint(self.folder, self.folder)

    @cached_property
    def model(self) -> HuggingFaceModel:
        """One model for all tests that do not change it."""
        return self.load()

    def copied(self) -> HuggingFaceModel:
        """A model that the test may change, without reading and checking the files again."""
        return copy.deepcopy(self.model)

    @cached_property
    def eager(self) -> Any:
        """transformers' model, eager."""
        return AutoModelForImageTextToText.from_pretrained(
            self.folder, attn_implementation="eager", dtype=torch.float32
        ).eval()

    @cached_property
    def reference(self) -> list[Outputs]:
        with torch.no_grad():
            return [self._alone(sample) for sample in self.samples]

    @property
    def batch(self) -> SequenceBatch:
        return collate_sequences([sample.example for sample in self.samples])

    def _alone(self, sample: Processed) -> Outputs:
        output = self.eager(**sample.whole, output_attentions=True, output_hidden_states=True, use_cache=False)
        # hybrid models return attention of their attention layers only
        config = self.checkpoint.config
        layer = 0 if len(output.attentions) < config.num_layers else config.attention_layer
        return Outputs(output.hidden_states[-1][0], output.logits[0], output.attentions[layer][0])


class Cases(dict[str, Case]):
    """Made when first asked for."""

    def __init__(self, folder_of: Callable[[str], Path]) -> None:
        super().__init__()
        self._folder_of = folder_of

    def __missing__(self, name: str) -> Case:
        folder = self._folder_of(name)
        if name in BUILDERS:
            self[name] = Case(name, folder, BUILDERS[name](folder))
        else:
            tiny_families.build(name, folder)
            self[name] = Case(name, folder, processed_samples(folder))
        return self[name]


@pytest.fixture(scope="package")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp)


@pytest.fixture(params=FAMILIES)
def every_case(request: pytest.FixtureRequest, cases: Cases) -> Case:
    """For what tests the code against transformers, or costs little once a model is there."""
    return cases[request.param]


@pytest.fixture(params=nine_first(FAMILIES, also=("paligemma2",)))
def case(request: pytest.FixtureRequest, cases: Cases) -> Case:
    return cases[request.param]


@pytest.fixture(scope="package")
def make_case() -> Callable[[str, Path], Case]:
    """A case of a checkpoint of another size."""
    return lambda name, folder: Case(name, folder, processed_samples(folder))
