"""The golden pair of models at work, in every kind of store that training reads differently."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretend_device import move, register

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.storage.tools.centres import class_means
from alignkd.student_train import trainer
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.samples.pairs import pairs_in_batch
from alignkd.student_train.distributed.ranks import Ranks, start_ranks
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.run.attention.chosen import attention_match, chosen_attention
from alignkd.student_train.run.checks.target_sources import stem_lookup, targets_by_term
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.weights.tensor_file import save_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "mobilevlm_v2_tiny"
IMAGES = GOLDEN.parent / "images"
STORES: dict[str, dict[str, Any]] = {
    "compact": {"profile": "compact"},
    "exact": {"profile": "exact"},
    "stem": {"profile": "stem"},
    "full": {"profile": "compact", "logits": {"kind": "full"}, "vision_top": "from_all"},
    "sampled_layers": {
        "profile": "compact",
        "logits": {"kind": "sampled"},
        "attention": {"layers": [0, 2, 3], "pairs": "all"},
    },
    "topk_means": {"logits": {"kind": "topk"}, "attention": {"layers": "0%-100%", "heads": {"groups": 2}}},
    "filtered": {"attention": {"layers": "0%-100%", "pairs": "all", "heads": "mean", "codec": "float16"}},
    "stem_layers": {"profile": "stem", "attention": {"layers": [0, 1]}},
    "counterfactual": {"profile": "compact", "counterfactual": {"remove": "focus"}},
    "blank": {"profile": "compact", "counterfactual": {"remove": "image"}},
    "pairs": {"profile": "exact"},
    "states": {
        "profile": "compact",
        "vision_states": "bfloat16",
        "vision_relations": "float16",
        "state_norms": "float32",
    },
    "layer_relations": {"profile": "compact", "vision_relations": "float16", "relations_of": "layer_1"},
    "stem_relations": {"profile": "stem"},
    "em_kd": {"vision_states": "float16", "vision_text_affinity": "float16"},
    "matched": {"profile": "compact", "vision_states": "float16", "vision_text_affinity": "float16"},
}
# of the stores that the default losses do not fit, or whose targets they leave out
LOSSES: dict[str, dict[str, Any]] = {
    "sampled_layers": {
        "logit_divergence": "forward_kl",
        "attention_layers": {0: 0, 1: (2, 3)},
        "attention_form": "kl",
        "attention_heads": "grouped",
    },
    "topk_means": {"attention_layers": "0%-100%", "attention_form": "cosine", "attention_heads": "mean"},
    "filtered": {"attention_layers": "0%-100%", "attention_form": "filtered_cosine", "attention_heads": "mean"},
    "stem_layers": {"attention_layers": {0: 1, 1: 0}},
    "counterfactual": {"effect": 1.0, "keep": 1.0},
    "blank": {"effect": 1.0, "logit_groups": "visual_advantage"},
    "pairs": {"preference": 1.0},
    "states": {"relation": 1.0, "visual_logit": 1.0, "nd": 1.0},
    "layer_relations": {"relation": 1.0, "relations_of": "layer_1", "relations_layer": 2},
    "stem_relations": {"relation": 1.0, "relations_of": "projector"},
    "em_kd": {"vsd": 0.25, "vlad": 25.0},
    "matched": {"vsd": 0.25, "vlad": 25.0, "vision_matching": "hungarian"},
}
TWO_IMAGES = {
    "id": "two",
    "image": ["coffee.png", "chelsea.png"],
    "conversations": [
        {"from": "human", "value": "Is <image> like <image>?"},
        {"from": "gpt", "value": "no, not at all"},
    ],
}


class GoldenJobs:
    """Jobs in a folder of their own; a store of the CPU is made once for each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.samples = [*json.loads((GOLDEN / "v1.json").read_text()), TWO_IMAGES]
        self.data = folder / "data.json"
        self.data.write_text(json.dumps(self.samples))
        self.pairs = folder / "pairs.json"
        self.pairs.write_text(json.dumps([_pair(sample) for sample in self.samples]))
        self.store = cache(self._store)
        self.centres = cache(self._centres)

    def dump_job(self, kind: str, device: str) -> DumpJob:
        """A teacher pass; that of `compact` begins with the teacher's checks, whose verdict is ignored."""
        return DumpJob(
            data=(DataSet(path=self.pairs if kind == "pairs" else self.data, images=IMAGES, pairs=kind == "pairs"),),
            template="v1",
            max_tokens=2048,
            teacher=TeacherConfig(
                checkpoint=str(GOLDEN / "teacher"),
                vision_config=GOLDEN / "clip",
                dtype="float32",
                batch=3,
                sanity="warn" if kind == "compact" else "off",
                device=device,
            ),
            store=StoreConfig(path=self.folder / f"{kind}-{device}", shard_size=3, **STORES[kind]),
        )

    def train_job(self, kind: str, name: str, **settings: Any) -> TrainJob:
        """A training of two steps of two micro-batches each from the CPU's store, in a folder `name`."""
        dtype, losses = settings.pop("dtype", "float32"), {"losses": settings.pop("losses", LOSSES.get(kind, {}))}
        if "nd" in losses["losses"]:
            settings["centres"] = self.centres()
        if kind == "pairs":
            settings = {"preference": "kto_pair", "kto_kl_gradient": True, **settings}
        given = {"steps": 2, "micro_batch": 2, "global_batch": 4, "learning_rate": 1e-3, "checkpoint_every": 1}
        return TrainJob(
            student=GOLDEN / "student",
            vision_config=GOLDEN / "clip",
            images=IMAGES,
            store=self.store(kind),
            dtype=dtype,
            train=TrainConfig(output=self.folder / name, report_to="none", **given, **losses, **settings),
        )

    def _centres(self) -> Path:
        """Class means of the teacher, from the store with hidden states."""
        reader = StoreReader(self.store("exact"))
        found = class_means(reader, min_count=1)
        tensors = {"tokens": torch.from_numpy(found.tokens), "centres": torch.from_numpy(found.means)}
        path = self.folder / "centres.safetensors"
        save_tensors(tensors, path, metadata={"class_means_of": reader.manifest.fingerprint["weights"]})
        return path

    def _store(self, kind: str) -> Path:
        job = self.dump_job(kind, "cpu")
        dump(job)
        return Path(job.store.path)


def batch_of(dataset: CachedDataset, student: ModelConfig, config: TrainConfig, ids: Sequence[str]) -> TrainBatch:
    """A micro-batch of these samples, or of the pairs with these ids, on the host."""
    places = {sample_id: place for place, sample_id in enumerate(dataset.reader.ids)}
    both = [[one] if one in places else [f"{one}#chosen", f"{one}#rejected"] for one in ids]
    positions = np.array([places[one] for pair in both for one in pair])
    return collate(
        [dataset[place] for place in positions.tolist()],
        targets=targets_by_term(dataset.reader.manifest, config.losses).values(),
        attention_pairs=chosen_attention(dataset.reader, attention_match(dataset.reader, student, config)),
        stem=stem_lookup(dataset.reader, config),
        pairs=pairs_in_batch(positions, Pairs.of(dataset.reader)),
        high_share=config.losses.high_share,
    )


def _pair(sample: dict[str, Any]) -> dict[str, Any]:
    """The sample's first question with its answer and a worse one."""
    question, answer, *_ = sample["conversations"]
    return {**sample, "conversations": [question], "chosen": answer, "rejected": "a dog, not " + answer["value"]}


def train_on_device(job: TrainJob, monkeypatch: Any) -> None:
    """`train(job)` on the pretend device: only which device a rank has is another."""
    real = trainer.build_student

    def built(*arguments: Any) -> DistilledStudent:
        student = real(*arguments)
        move(student)
        return student

    def ranks(*arguments: Any) -> Ranks:
        return replace(start_ranks(*arguments), device=register())

    monkeypatch.setattr(trainer, "build_student", built)
    monkeypatch.setattr(trainer, "start_ranks", ranks)
    trainer.train(job)
