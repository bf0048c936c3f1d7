"""The dataset card: what a person, the hub and `alignkd train` read in it."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from alignkd.pipeline.config.recipes import load_stage
from alignkd.storage import Codecs, LogitsCodec, Manifest, StoreError
from alignkd.storage.codecs.settings import NONE
from alignkd.storage.files.hub_location import parse_hub_location
from alignkd.storage.schema.sources import StoredSource
from alignkd.storage.tools.push.card import CardFacts, facts_of, make_card
from alignkd.storage.tools.push.content import PushedStore

PLACE = parse_hub_location("hf://datasets/org/name/some/path@v1")


@pytest.fixture
def card_of(
    make_manifest: Callable[..., Manifest], write_store: Callable[..., Path], tmp_path: Path
) -> Callable[..., str]:
    """card_of(facts, ...): the card of a small store with these fields of the manifest."""

    def make(facts: CardFacts | None = None, **fields: Any) -> str:
        name = hashlib.sha256(repr(fields).encode()).hexdigest()[:12]
        folder = write_store(tmp_path / name, make_manifest(num_samples=5, shard_size=3, **fields), quarantine=(4,))
        store = PushedStore(folder)
        return make_card(PLACE, store.manifest, store.commits, facts or CardFacts())

    return make


def test_what_the_hub_reads(card_of: Callable[..., str]) -> None:
    card = DatasetCard(card_of(CardFacts(licence="cc-by-4.0", teacher="org/teacher")))
    data = card.data.to_dict()
    assert data["license"] == "cc-by-4.0" and data["viewer"] is False and data["size_categories"] == ["n<1K"]
    assert "alignkd" in data["tags"] and "license" not in DatasetCard(card_of()).data.to_dict()


def test_what_a_person_reads(card_of: Callable[..., str]) -> None:
    sources = (StoredSource(name="captions", num_samples=2), StoredSource(name="dialogs", num_samples=3))
    card = card_of(CardFacts(teacher="org/teacher"), sources=sources, inputs="embed")
    for part in (
        "The teacher is `org/teacher`.",
        "| weights | `w0` |",
        "| records | 4 |",
        "| unusable samples, listed with reasons | 1 |",
        "| shards | 2 of 2, layout `zarr` |",
        "| `captions` | 2 |",
        "| `dialogs` | 3 |",
        "| `attention` | `float16`, decoder layer 0 |",
        "kind `topk`, top_k `3`",
        "**The image files are embedded**",
        "alignkd shards verify --deep hf://datasets/org/name@v1/some/path",
        "hf download org/name --repo-type dataset --revision v1 --include 'some/path/*' --local-dir store",
        "`hf://datasets/org/name@COMMIT/some/path` names one state",
    ):
        assert part in card, part
    assert "The images are **not** in the store" in card_of()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"inputs": "embed", "fingerprint": {"template": "v1:1"}, "data_fingerprint": {"max_tokens": "512"}},
        {"sources": (StoredSource(name="a", num_samples=2), StoredSource(name="2026", num_samples=3))},
        {"codecs": Codecs(attention=NONE, vision_top=NONE, vision_all=NONE, logits=LogitsCodec(kind="full"))},
    ],
)
def test_the_configuration_trains(card_of: Callable[..., str], tmp_path: Path, fields: dict[str, Any]) -> None:
    """It passes the check of `alignkd train`, and names the store, its data sets and settings of the teacher."""
    found = re.search(r"```yaml\n(.*?)```", card_of(**fields), re.DOTALL)
    assert found is not None
    file = tmp_path / "train.yaml"
    file.write_text(found[1])
    job = load_stage(file, "train", None).train_job()
    assert str(job.store) == "hf://datasets/org/name@v1/some/path"
    sections = yaml.safe_load(found[1])["data"]
    if fields.get("sources"):
        assert [section["name"] for section in sections] == ["a", "2026"]
    elif fields.get("inputs") == "embed":
        assert sections == {"conversations": "in-the-store", "template": "v1", "max_tokens": 512}
    else:
        assert sections["images"] == "data/images"


def test_the_mark_tells_an_edited_card(card_of: Callable[..., str]) -> None:
    facts = CardFacts(licence="mit", teacher="a teacher")
    card = card_of(facts)
    assert facts_of(card) == facts == CardFacts().or_else(facts)
    assert facts_of(card.replace("# name", "# mine")) is None and facts_of("# mine\n") is None
    assert CardFacts(licence="apache-2.0").or_else(facts) == CardFacts(licence="apache-2.0", teacher="a teacher")
    assert card_of(facts) == card


@pytest.mark.parametrize("given", [{"teacher": "a\nb"}, {"teacher": "<script>"}, {"licence": "mit\nx: 1"}])
def test_what_cannot_stand_in_a_card(given: dict[str, str]) -> None:
    with pytest.raises(StoreError, match=r"expected"):
        CardFacts(**given)
