"""`alignkd shards push`: a store in a folder becomes a data set of the hub, or a newer state of it.

A commit of the hub is atomic. Shards go first, in commits of some hundred files that no reader looks at; the last
commit has the manifest, the commit records and the card. So the data set is at every commit no store yet, the store as
it was, or the whole new one. What the hub has already is found by content, so a killed push continues where it was.
Every commit names its parent: two pushes at the same time cannot mix.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from alignkd.storage.errors import CorruptStoreError, RemoteError, StoreError
from alignkd.storage.files.hub_location import EXPECTED, HubLocation, parse_hub_location
from alignkd.storage.remote.hub.client import HubClient, HubData, HubFile
from alignkd.storage.remote.hub.errors import ChangedError, NoDataSetError, NoRevisionError
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.remote.retry import TransientError, pause_seconds
from alignkd.storage.remote.settings import RemoteSettings, settings_from_environment
from alignkd.storage.schema.commit_record import COMMITS, SHARDS, WRITTEN, commit_name
from alignkd.storage.schema.manifest import FILE_NAME, MAX_FILE_BYTES, Manifest, parse_manifest
from alignkd.storage.schema.sealed_json import unseal_bytes
from alignkd.storage.tools.push.card import CARD, CardFacts, facts_of, make_card
from alignkd.storage.tools.push.content import PushedFile, PushedGroup, PushedStore
from alignkd.storage.write.grow import grown

# of one commit on the hub: whole shards until one of these is reached
COMMIT_FILES = 500
COMMIT_BYTES = 8 << 30
# commit records of one commit, which are in the body of one request
HEADS_FILES = 500
MAX_CHANGES = 5
MAX_CARD_BYTES = 1 << 20
# what a data set may hold beside a store
_BESIDE = {CARD, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"}

CardState = Literal["written", "unchanged", "kept"]


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What the user asks for.

    Attributes:
        private: create the data set private; refuse one that is public.
        message: of the hub's commits; None makes one.
        facts: what the card says and the manifest does not.
        replace_card: also replace a card that a person wrote or edited.
        dry_run: change nothing.
    """

    private: bool = False
    message: str | None = None
    facts: CardFacts = field(default_factory=CardFacts)
    replace_card: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class PushReport:
    """What was pushed, or would be.

    Attributes:
        commit: the data set's commit afterwards; None if it does not exist yet.
        created: the data set is new.
        files, num_bytes: sent by this call, the card and what was in git too.
        shards: whose files or commit records were sent.
        replaced: of these, shards whose earlier state was on the hub.
        card: `kept` is a card that a person wrote or edited.
        card_text: the card made from the store.
    """

    commit: str | None
    created: bool
    files: int
    num_bytes: int
    shards: tuple[int, ...]
    replaced: tuple[int, ...]
    card: CardState
    card_text: str
    num_shards: int
    planned_shards: int
    embeds_images: bool


def push_store(
    folder: Path,
    location: str,
    options: PushOptions,
    progress: Callable[[int], object] = lambda shards: None,
    settings: RemoteSettings | None = None,
) -> PushReport:
    """Make the store in a folder the one at a location of the hub; what is there already is not sent again.

    Args:
        location: `hf://datasets/ORG/NAME[/PATH][@BRANCH]`; data set and branch are created if they do not exist.
        progress: called with the number of shards that the hub has now.

    Raises:
        StoreError: not a store, or the location holds another one or something else.
        CorruptStoreError: the local disk returned other bytes than committed.
        RemoteError: the hub does not answer, or refuses.
    """
    place = parse_hub_location(location)
    if place.is_commit or (place.revision or "").startswith("refs/"):
        raise StoreError(f"{location}: {place.revision} is not a branch; give one after '@', expected {EXPECTED}")
    store = PushedStore(folder)
    settings = settings or settings_from_environment()
    push = _Push(store, place, options, progress, settings)
    with push.client.no_bars():
        return push.run()


@dataclass
class _Sent:
    files: int = 0
    num_bytes: int = 0
    commits: int = 0


@dataclass(frozen=True)
class _Found:
    """The data set before a change, and what it lacks."""

    head: str
    exists: bool
    body: list[PushedGroup]
    heads: list[PushedFile]
    stale: list[str]
    replaced: tuple[int, ...]
    card: CardState
    card_text: str
    present: int


class _Push:
    def __init__(
        self,
        store: PushedStore,
        place: HubLocation,
        options: PushOptions,
        progress: Callable[[int], object],
        settings: RemoteSettings,
    ) -> None:
        self.store, self.place, self.options, self.progress = store, place, options, progress
        self.settings = settings
        self.client = HubClient(replace(place, revision=place.revision or "main"), settings)
        self.sent, self.shards, self.created = _Sent(), set[int](), False
        self._reported = 0

    def run(self) -> PushReport:
        if not self.options.dry_run and not self.client.has_token:
            raise StoreError(
                f"{self.place.url}: no token of the hub; `hf auth login`, or set HF_TOKEN to one with write access"
            )
        data = self._data_set()
        if data is None:
            return self._report(self._compared("", {}), None)
        if self.options.private and not data.private:
            raise StoreError(
                f"{self.place.url}: the data set exists and is public; --private makes only a new one private. Change "
                f"it on {self.client.endpoint}/datasets/{self.place.repo}/settings, or push without --private"
            )
        if self.options.dry_run:
            found = self._compared(data.commit, self._tree(data.commit))
            return self._report(found, data.commit)
        first, commit = self._repeated()
        return self._report(first, commit)

    def _data_set(self) -> HubData | None:
        """The data set, created if need be; None where a dry run would create it."""
        try:
            return self.client.info()
        except NoDataSetError:
            if self.options.dry_run:
                self.created = True
                return None
            self.client.create(self.options.private)
            self.created = True
        except NoRevisionError:
            if self.options.dry_run:
                return None
        self.client.create_branch(self.client.place.revision or "main")
        return self.client.info()

    def _repeated(self) -> tuple[_Found, str]:
        """Compare and send until nothing is missing; what was there at the start, and the last commit."""
        failures = changes = 0
        first: _Found | None = None
        while True:
            before = self.sent.commits
            try:
                head = self.client.info().commit
                found = self._compared(head, self._tree(head))
                first = first or found
                self._show(found.present)
                return first, self._send(found)
            except ChangedError:
                changes += 1
                if changes > MAX_CHANGES:
                    raise StoreError(
                        f"{self.place.url}: others change it at the same time; run the command again"
                    ) from None
            except TransientError as error:
                failures = 1 if self.sent.commits > before else failures + 1
                wait = max(pause_seconds(failures), error.after_seconds)
                if failures >= self.settings.attempts or wait > self.settings.deadline_seconds:
                    raise RemoteError(
                        f"{self.place.url}: {error}, {failures} attempts; run the command again, it continues there"
                    ) from None
                time.sleep(wait)

    def _tree(self, head: str) -> dict[str, HubFile]:
        try:
            return self.client.tree(head)
        except AbsentError:  # the folder of the store
            return {}

    def _compared(self, head: str, tree: Mapping[str, HubFile]) -> _Found:
        """What the data set at a commit lacks.

        Raises:
            StoreError: it holds another store, or something else.
        """
        if exists := FILE_NAME in tree:
            self._check_same_store(head, tree)
        else:
            self._check_free(tree)
        heads = [file for file in self.store.heads() if not file.is_at(tree.get(file.path))]
        body, present = [], 0
        for group in self.store.body():
            missing = tuple(file for file in group.files if not file.is_at(tree.get(file.path)))
            present += not missing and group.shard is not None
            if missing:
                body.append(PushedGroup(shard=group.shard, files=missing))
        stale, replaced = self._stale(tree)
        state, text = self._card(head, tree)
        return _Found(head, exists, body, heads, stale, replaced, state, text, present)

    def _check_same_store(self, head: str, tree: Mapping[str, HubFile]) -> None:
        where = f"{self.place.url}/{FILE_NAME}"
        found = parse_manifest(unseal_bytes(self._read(FILE_NAME, head, MAX_FILE_BYTES), where), where)
        ours = self.store.manifest
        try:
            grown(self.place.url, found, ours)
        except StoreError as error:
            raise StoreError(
                f"{self.place.url} holds store {_name(found)}, {self.store.folder} is store {_name(ours)}; push it to "
                f"another data set or path ({error})"
            ) from None
        known = {commit_name(commit.shard) for commit in self.store.commits}
        if lacking := sorted(path for path in tree if path.startswith(f"{COMMITS}/") and path not in known):
            raise StoreError(
                f"{self.place.url} holds {lacking[0]}, a shard that {self.store.folder} lacks; push a copy that has all"
            )
        for file in (file for group in self.store.body() for file in group.files):
            # written in place, it would not fit the commit record until that is replaced too
            if file.path in tree and not file.is_at(tree[file.path]):
                raise StoreError(
                    f"{self.place.url}/{file.path} has other bytes than in {self.store.folder}: another dump with the "
                    "same settings; push this one to another data set or path"
                )

    def _check_free(self, tree: Mapping[str, HubFile]) -> None:
        ours = {file.path: file for group in self.store.body() for file in group.files}
        ours |= {file.path: file for file in self.store.heads()}
        for path, remote in sorted(tree.items()):
            if path in _BESIDE:
                continue
            if path not in ours or not ours[path].is_at(remote):
                step = "push to another data set or path, or delete it there if a push of another store left it"
                raise StoreError(f"{self.place.url} holds {path!r}, which is not of store {self.store.folder}; {step}")

    def _stale(self, tree: Mapping[str, HubFile]) -> tuple[list[str], tuple[int, ...]]:
        """Files of earlier states of the store's shards, and these shards."""
        folders = {commit.folder for commit in self.store.commits}
        shards = {commit.shard: commit for commit in self.store.commits}
        stale, numbers = [], set()
        for path in tree:
            parts = path.split("/")
            if parts[0] != SHARDS or len(parts) < 3 or not WRITTEN.fullmatch(parts[1]) or parts[1] in folders:
                continue
            if (number := int(parts[1].partition("-")[0])) in shards:
                stale.append(path)
                numbers.add(number)
        return stale, tuple(sorted(numbers))

    def _card(self, head: str, tree: Mapping[str, HubFile]) -> tuple[CardState, str]:
        """Whether the card is to be written, and its text."""
        existing = self._read(CARD, head, MAX_CARD_BYTES).decode(errors="replace") if CARD in tree else None
        earlier = None if existing is None else facts_of(existing)
        text = make_card(self.place, self.store.manifest, self.store.commits, self.options.facts.or_else(earlier))
        if existing == text:
            return "unchanged", text
        if existing is not None and earlier is None and not self.options.replace_card:
            return "kept", text
        return "written", text

    def _send(self, found: _Found) -> str:
        """Send what is missing; the last commit."""
        head = found.head
        for batch in _batches(found.body):
            files = [file for group in batch for file in group.files]
            additions = []
            for group in batch:
                additions += self._uploaded(group)
            head = self._commit(additions, [], head)
            self._count(files)
            shards = {group.shard for group in batch if group.shard is not None}
            self.shards |= shards
            self._show(self._reported + len(shards))
        return self._send_heads(found, head)

    def _send_heads(self, found: _Found, head: str) -> str:
        card = []
        if found.card == "written":
            content = found.card_text.encode()
            card = [PushedFile(path=CARD, source=content, num_bytes=len(content), sha256="")]
        heads = list(found.heads)
        # a new store exists with its manifest, so that goes last; shards of an addition are refused without it
        heads.sort(key=lambda file: file.path == FILE_NAME, reverse=found.exists)
        pieces = [heads[at : at + HEADS_FILES] for at in range(0, len(heads), HEADS_FILES)] or [[]]
        for number, piece in enumerate(pieces, 1):
            is_last = number == len(pieces)
            files, stale = [*piece, *(card if is_last else [])], found.stale if is_last else []
            if files or stale:
                additions = self.client.additions({file.path: file.source for file in files})
                head = self._commit(additions, stale, head)
                self._count(files)
            self.shards |= {int(file.path[len(COMMITS) + 1 : -5]) for file in piece if file.path != FILE_NAME}
        return head

    def _uploaded(self, group: PushedGroup) -> list[object]:
        """The operations that add a group's files, whose large ones the hub has now."""
        additions = self.client.additions({file.path: file.source for file in group.files})
        for file, addition in zip(group.files, additions, strict=True):
            # read once: the client uses the same hash
            if (found := self.client.sha256_of(addition)) != file.sha256:
                raise CorruptStoreError(
                    f"{self.store.folder / file.path}: sha256 is {found[:12]}, committed {file.sha256[:12]}; the disk "
                    f"returned other bytes. It is not pushed, see `alignkd shards verify --deep {self.store.folder}`"
                )
        self.client.upload(additions)
        return additions

    def _commit(self, additions: list[object], deletions: list[str], head: str) -> str:
        message = self.options.message or f"alignkd: store {_name(self.store.manifest)}"
        made = self.client.commit(additions, deletions, message, head)
        self.sent.commits += 1
        return made

    def _count(self, files: list[PushedFile]) -> None:
        self.sent.files += len(files)
        self.sent.num_bytes += sum(file.num_bytes for file in files)

    def _show(self, shards: int) -> None:
        """Report how many shards the hub has; the number never falls."""
        if shards > self._reported:
            self.progress(shards - self._reported)
            self._reported = shards

    def _read(self, path: str, head: str, limit: int) -> bytes:
        span = self.client.get_range(path, head, 0, limit)
        return b"" if span is None else span.data

    def _report(self, found: _Found, commit: str | None) -> PushReport:
        sent, shards = self.sent, self.shards
        if self.options.dry_run:
            files = [file for group in found.body for file in group.files] + found.heads
            sent = _Sent(len(files), sum(file.num_bytes for file in files))
            shards = {group.shard for group in found.body if group.shard is not None}
        return PushReport(
            commit=commit,
            created=self.created,
            files=sent.files,
            num_bytes=sent.num_bytes,
            shards=tuple(sorted(shards)),
            replaced=found.replaced,
            card=found.card,
            card_text=found.card_text,
            num_shards=len(self.store.commits),
            planned_shards=self.store.manifest.num_shards,
            embeds_images=self.store.manifest.inputs == "embed",
        )


def _batches(groups: list[PushedGroup]) -> Iterator[list[PushedGroup]]:
    """Groups that one commit takes: at least one, then as long as files and bytes are within the limits."""
    batch: list[PushedGroup] = []
    files = num_bytes = 0
    for group in groups:
        size = sum(file.num_bytes for file in group.files)
        if batch and (files + len(group.files) > COMMIT_FILES or num_bytes + size > COMMIT_BYTES):
            yield batch
            batch, files, num_bytes = [], 0, 0
        batch.append(group)
        files, num_bytes = files + len(group.files), num_bytes + size
    if batch:
        yield batch


def _name(manifest: Manifest) -> str:
    """A store in messages."""
    return f"{manifest.whole_hash[:12]} ({manifest.num_samples} samples)"
