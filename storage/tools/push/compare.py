"""What a data set of the hub lacks of a store, and whether it may hold it at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alignkd.storage.errors import StoreError
from alignkd.storage.files.hub_location import HubLocation
from alignkd.storage.remote.hub.client import HubClient, HubFile
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.schema.commit_record import COMMITS, SHARDS, WRITTEN, commit_name
from alignkd.storage.schema.manifest import FILE_NAME, MAX_FILE_BYTES, Manifest, parse_manifest
from alignkd.storage.schema.sealed_json import unseal_bytes
from alignkd.storage.tools.push.card import CARD, CardFacts, facts_of, make_card
from alignkd.storage.tools.push.content import PushedFile, PushedGroup, PushedStore
from alignkd.storage.write.grow import grown

MAX_CARD_BYTES = 1 << 20
# what a data set may hold beside a store
_BESIDE = {CARD, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"}

CardState = Literal["written", "unchanged", "kept"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A data set at one commit, and what it lacks.

    Attributes:
        head: the commit; "" if the data set does not exist.
        exists: it holds an earlier state of the store, or this one.
        body, heads: files to send, see `PushedStore`.
        stale: paths of files of earlier states of shards.
        replaced: numbers of these shards.
        card: `written` is to be written, `kept` was written or edited by a person.
        card_text: the card made from the store.
        present: shards whose files are all there.
    """

    head: str
    exists: bool
    body: list[PushedGroup]
    heads: list[PushedFile]
    stale: list[str]
    replaced: tuple[int, ...]
    card: CardState
    card_text: str
    present: int


class Comparison:
    """Compares data sets with one store."""

    def __init__(
        self, store: PushedStore, place: HubLocation, client: HubClient, facts: CardFacts, *, replace_card: bool
    ) -> None:
        """See `PushOptions`."""
        self.store, self.place, self.client = store, place, client
        self.facts, self.replace_card = facts, replace_card

    def at(self, head: str | None) -> Difference:
        """What the data set at a commit lacks; None: there is no data set.

        Raises:
            StoreError: it holds another store, or something else.
        """
        tree = {} if head is None else self._tree(head)
        return self._compared(head or "", tree)

    def _tree(self, head: str) -> dict[str, HubFile]:
        try:
            return self.client.tree(head)
        except AbsentError:  # the folder of the store
            return {}

    def _compared(self, head: str, tree: Mapping[str, HubFile]) -> Difference:
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
        return Difference(
            head=head,
            exists=exists,
            body=body,
            heads=heads,
            stale=stale,
            replaced=replaced,
            card=state,
            card_text=text,
            present=present,
        )

    def _check_same_store(self, head: str, tree: Mapping[str, HubFile]) -> None:
        where = f"{self.place.url}/{FILE_NAME}"
        found = parse_manifest(unseal_bytes(self._read(FILE_NAME, head, MAX_FILE_BYTES), where), where)
        ours = self.store.manifest
        try:
            grown(self.place.url, found, ours)
        except StoreError as error:
            raise StoreError(
                f"{self.place.url} holds store {store_label(found)}, {self.store.folder} is store {store_label(ours)}; "
                f"push it to another data set or path ({error})"
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
        text = make_card(self.place, self.store.manifest, self.store.commits, self.facts.or_else(earlier))
        if existing == text:
            return "unchanged", text
        if existing is not None and earlier is None and not self.replace_card:
            return "kept", text
        return "written", text

    def _read(self, path: str, head: str, limit: int) -> bytes:
        span = self.client.get_range(path, head, 0, limit)
        return b"" if span is None else span.data


def store_label(manifest: Manifest) -> str:
    """A store in messages."""
    return f"{manifest.whole_hash[:12]} ({manifest.num_samples} samples)"
