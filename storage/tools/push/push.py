"""`alignkd shards push`: a store in a folder becomes a data set of the hub, or a newer state of it.

A commit of the hub is atomic. Shards go first, in commits of some hundred files that no reader looks at; the last
commit has the manifest, the commit records and the card. So the data set is at every commit no store yet, the store as
it was, or the whole new one. What the hub has already is found by content, so a killed push continues where it was.
Every commit names its parent: two pushes at the same time cannot mix.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignkd.storage.errors import CorruptStoreError, RemoteError, StoreError
from alignkd.storage.files.hub_location import EXPECTED, HubLocation, parse_hub_location
from alignkd.storage.remote.hub.client import HubClient, HubData
from alignkd.storage.remote.hub.errors import ChangedError, NoDataSetError, NoRevisionError
from alignkd.storage.remote.retry import TransientError, pause_seconds
from alignkd.storage.remote.settings import RemoteSettings, settings_from_environment
from alignkd.storage.schema.commit_record import COMMITS
from alignkd.storage.schema.manifest import FILE_NAME
from alignkd.storage.tools.push.card import CARD, CardFacts
from alignkd.storage.tools.push.compare import CardState, Comparison, Difference, store_label
from alignkd.storage.tools.push.content import PushedFile, PushedGroup, PushedStore

# of one commit on the hub: whole shards until one of these is reached
COMMIT_FILES = 500
COMMIT_BYTES = 8 << 30
# commit records of one commit, which are in the body of one request
HEADS_FILES = 500
MAX_CHANGES = 5


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
        self.comparison = Comparison(store, place, self.client, options.facts, replace_card=options.replace_card)
        self.sent, self.shards, self.created = _Sent(), set[int](), False
        self._reported = 0

    def run(self) -> PushReport:
        if not self.options.dry_run and not self.client.has_token:
            raise StoreError(
                f"{self.place.url}: no token of the hub; `hf auth login`, or set HF_TOKEN to one with write access"
            )
        if self.client.is_offline:
            raise StoreError(f"{self.place.url}: HF_HUB_OFFLINE is set; unset it to push")
        data = self._data_set()
        if data is None:
            return self._report(self.comparison.at(None), None)
        if self.options.private and not data.private:
            raise StoreError(
                f"{self.place.url}: the data set exists and is public; --private makes only a new one private. Change "
                f"it on {self.client.endpoint}/datasets/{self.place.repo}/settings, or push without --private"
            )
        if self.options.dry_run:
            return self._report(self.comparison.at(data.commit), data.commit)
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

    def _repeated(self) -> tuple[Difference, str]:
        """Compare and send until nothing is missing; what was there at the start, and the last commit."""
        failures = changes = 0
        first: Difference | None = None
        while True:
            before = self.sent.commits
            try:
                found = self.comparison.at(self.client.info().commit)
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

    def _send(self, found: Difference) -> str:
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

    def _send_heads(self, found: Difference, head: str) -> str:
        card = _card_files(found)
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
        for file in group.files:
            if isinstance(file.source, Path) and not file.source.is_file():
                raise StoreError(
                    f"{file.source}: is gone since the command began, as the shard was done again or removed; run the "
                    "command again, it continues there"
                )
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
        message = self.options.message or f"alignkd: store {store_label(self.store.manifest)}"
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

    def _report(self, found: Difference, commit: str | None) -> PushReport:
        sent, shards = self.sent, self.shards
        if self.options.dry_run:
            files = [file for group in found.body for file in group.files] + found.heads + _card_files(found)
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


def _card_files(found: Difference) -> list[PushedFile]:
    """The card, if it is to be written."""
    if found.card != "written":
        return []
    content = found.card_text.encode()
    return [PushedFile(path=CARD, source=content, num_bytes=len(content), sha256="")]


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
