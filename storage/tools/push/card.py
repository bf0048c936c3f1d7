"""The dataset card of a pushed store: README.md, made from the manifest and the commit records.

The last line is a comment with the hash of the text before it, and what the user gave. A card whose hash is right was
not edited, so it may be replaced by a newer one.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.errors import StoreError
from alignkd.storage.files.hub_location import HubLocation
from alignkd.storage.schema.commit_record import CommitRecord
from alignkd.storage.schema.manifest import Manifest, NamedTarget

CARD = "README.md"
_MARK = re.compile(r"<!-- alignkd card (\{.*\}) ([0-9a-f]{64}) -->\n?\Z")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")
# classes of the hub by number of records
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
MAX_SHOWN = 64


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the user states about a store; the manifest has hashes of the teacher only.

    Attributes:
        licence: identifier of the hub, such as `cc-by-4.0`.
        teacher: hub id or name of the teacher.
    """

    licence: str | None = None
    teacher: str | None = None

    def __post_init__(self) -> None:
        """Raises StoreError for what cannot stand in a card."""
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            raise StoreError(
                f"licence is {self.licence!r}, expected an identifier of the hub, such as cc-by-4.0 or other"
            )
        if self.teacher is not None and not re.fullmatch(r"[^\n`<>|]{1,200}", self.teacher):
            raise StoreError(f"teacher is {self.teacher!r}, expected a name or a hub id on one line")

    def or_else(self, earlier: "CardFacts | None") -> "CardFacts":
        """These, completed by those of an earlier card."""
        if earlier is None:
            return self
        return CardFacts(licence=self.licence or earlier.licence, teacher=self.teacher or earlier.teacher)


def facts_of(card: str) -> CardFacts | None:
    """What was given for a card; None for one that a person wrote or edited."""
    found = _MARK.search(card)
    if found is None or _hash(card[: found.start()]) != found[2]:
        return None
    try:
        return CardFacts(**json.loads(found[1]))
    except (ValueError, TypeError):
        return None


def make_card(place: HubLocation, manifest: Manifest, commits: Sequence[CommitRecord], facts: CardFacts) -> str:
    """The text of a card with its mark; the same store and facts give the same text."""
    branch = None if place.revision == "main" else place.revision
    where = HubLocation(repo=place.repo, prefix=place.prefix, revision=branch)
    parts = [
        _front_matter(place, commits, facts),
        f"# {place.repo.partition('/')[2]}",
        "Cached targets of a teacher, a vision-language model, for the offline distillation of a smaller one with "
        "alignkd. Each record holds one sample's conversation, its token ids and positions, and what the teacher "
        "computed for it. The teacher is not needed to train a student.",
        _counts(manifest, commits),
        "## Teacher",
        _teacher(manifest, facts),
        "## Data sets",
        _data_sets(manifest),
        "## Targets",
        _targets(manifest),
        "## Train a student",
        _training(where, manifest),
        "## Look inside, verify, download",
        _commands(where),
    ]
    text = "\n\n".join(parts) + "\n\n"
    given = {name: value for name, value in vars(facts).items() if value is not None}
    return f"{text}<!-- alignkd card {json.dumps(given, sort_keys=True)} {_hash(text)} -->\n"


def _front_matter(place: HubLocation, commits: Sequence[CommitRecord], facts: CardFacts) -> str:
    records = sum(commit.num_records for commit in commits)
    size = next((name for limit, name in _SIZES if records < limit), "n>100M")
    lines = [
        *([f"license: {facts.licence}"] if facts.licence else []),
        f"pretty_name: {json.dumps(place.repo.partition('/')[2])}",
        "tags: [alignkd, knowledge-distillation, vision-language]",
        "task_categories: [image-text-to-text]",
        f"size_categories: [{json.dumps(size)}]",
        "viewer: false",
    ]
    return "\n".join(["---", *lines, "---"])


def _counts(manifest: Manifest, commits: Sequence[CommitRecord]) -> str:
    totals = [commit.totals for commit in commits]
    rows: list[tuple[str, object]] = [
        ("records", sum(commit.num_records for commit in commits)),
        ("unusable samples, listed with reasons", sum(len(commit.quarantined) for commit in commits)),
        ("supervised positions", sum(one.supervised for one in totals)),
        ("tokens", sum(one.tokens for one in totals)),
        ("distinct images, counted in each shard", sum(one.images for one in totals)),
        ("shards", f"{len(commits)} of {manifest.num_shards}, layout `{manifest.backend}`"),
        ("bytes", sum(one.bytes for one in totals)),
    ]
    unfinished = len(commits) < manifest.num_shards
    note = "\n\n**The store is unfinished**: the shards that are missing follow." if unfinished else ""
    return _table("", "count", [(name, _number(value)) for name, value in rows]) + note


def _teacher(manifest: Manifest, facts: CardFacts) -> str:
    named = f"The teacher is `{facts.teacher}`. " if facts.teacher else ""
    shown = {name: value for name, value in sorted(manifest.fingerprint.items()) if len(value) <= MAX_SHOWN}
    rows = [(name, f"`{_plain(value[:12] if len(value) == MAX_SHOWN else value)}`") for name, value in shown.items()]
    text = (
        "Before it trains, alignkd compares the fingerprints of tokenizer, template and image processor with those of "
        "the student. Hashes are shortened."
    )
    return f"{named}{text}\n\n{_table('fingerprint', 'value', rows)}"


def _data_sets(manifest: Manifest) -> str:
    sources = manifest.all_sources()
    rows = [
        (f"`{_plain(source.name)}`", f"{_number(source.num_samples)}{' of pairs' if source.pairs else ''}")
        for source in sources
    ] or [("one data set", _number(manifest.num_samples))]
    if manifest.inputs == "embed":
        images = (
            "**The image files are embedded**, as they were given to the teacher: whoever can read this data set has "
            "the images. Their licences hold, besides that of this data set."
        )
    else:
        images = (
            "The images are **not** in the store: it holds their relative paths and sha256. Training needs the same "
            "image files in a folder, and refuses others."
        )
    return f"{_table('data set', 'samples', rows)}\n\n{images} The conversations are in the records."


def _targets(manifest: Manifest) -> str:
    rows = [(f"`{target.name}`", _codec(target)) for target in manifest.targets]
    return _table("target", "stored as", rows)


def _codec(target: NamedTarget) -> str:
    if target.source == "stem":
        return "computed in training from the teacher's stem, which is attached"
    if isinstance(target.codec, LogitsCodec):
        settings = target.codec.model_dump(exclude_none=True)
        return ", ".join(f"{name} `{_plain(str(value))}`" for name, value in settings.items())
    noun = "layer" if len(target.layers) == 1 else "layers"
    layers = f", decoder {noun} {', '.join(map(str, target.layers))}" if target.layers else ""
    return f"`{target.codec}`{layers}"


def _training(where: HubLocation, manifest: Manifest) -> str:
    return (
        "`train.yaml`; the values of `student` and `train` are a start, not a recommendation:\n\n"
        f"```yaml\n{training_yaml(where.url, manifest)}```\n\n"
        "```\npip install 'alignkd[families]'\nalignkd train train.yaml\n```"
    )


def training_yaml(url: str, manifest: Manifest) -> str:
    """A configuration file that trains from the store at a URL, but for the names of a student and of images."""
    sources = manifest.all_sources()
    sections = [_data_section(manifest, source.name) for source in sources] if len(sources) > 1 else []
    names = {target.name for target in manifest.targets}
    paper = {"attention", "vision_top", "logits"} <= names
    student = "mtgv/MobileVLM_V2-1.7B" if _mobilevlm(manifest) else "ORG/STUDENT"
    lines = [
        *(["data:", *(f"  - {section}" for section in sections)] if sections else [f"data: {_data_section(manifest)}"]),
        f"student: {{checkpoint: {student}, dtype: bfloat16}}   # of the teacher's family, with its tokenizer",
        f"store: {{path: {json.dumps(url)}}}",
        "train:",
        "  output: runs/student",
        "  preset: paper" if paper else "  losses: {supervised: 1.0, logit: 1.0}",
        "  epochs: 1",
        "  global_batch: 64",
        "  micro_batch: 4",
        "  learning_rate: 2.0e-5",
        "  warmup_ratio: 0.03",
    ]
    return "\n".join(lines) + "\n"


def _data_section(manifest: Manifest, name: str | None = None) -> str:
    """One data set; training takes the conversations from the store, but the key is required."""
    fields: dict[str, Any] = {"conversations": "in-the-store"}
    if name is not None:
        fields["name"] = name
    if manifest.inputs != "embed":
        fields["images"] = "data/images"
    template = manifest.fingerprint.get("template", "").partition(":")[0]
    if template in ("plain", "v1"):
        fields["template"] = template
    if (limit := manifest.data_fingerprint.get("max_tokens", "")).isdecimal():
        fields["max_tokens"] = int(limit)
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in fields.items()) + "}"


def _mobilevlm(manifest: Manifest) -> bool:
    return manifest.fingerprint.get("template", "").partition(":")[0] in ("plain", "v1")


def _commands(where: HubLocation) -> str:
    include = f" --include '{where.prefix}/*'" if where.prefix else ""
    revision = f" --revision {where.revision}" if where.revision else ""
    folder = f"store/{where.prefix}" if where.prefix else "store"
    one_state = HubLocation(repo=where.repo, prefix=where.prefix, revision="COMMIT")
    return (
        "```\n"
        f"alignkd shards ls {where.url}             # shards, records, bytes, and the root hash with --json\n"
        f"alignkd shards show {where.url} --index 0\n"
        f"alignkd shards verify --deep {where.url}   # reads every byte and compares checksums\n"
        f"hf download {where.repo} --repo-type dataset{revision}{include} --local-dir store\n"
        f"alignkd shards verify {folder}\n"
        "```\n\n"
        f"`{one_state.url}` names one state of the data set for good."
    )


def _table(first: str, second: str, rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join([f"| {first} | {second} |", "|:--|:--|", *(f"| {name} | {value} |" for name, value in rows)])


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(text: str) -> str:
    """Text of a manifest inside a code span of a table."""
    return re.sub(r"[`|\r\n]", " ", text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
