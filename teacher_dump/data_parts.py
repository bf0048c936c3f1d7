"""What a manifest holds about the data, and how a store that exists continues with a longer list of data."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from alignkd.storage.errors import StoreError
from alignkd.storage.schema.manifest import SCHEMA_VERSION, Manifest
from alignkd.storage.schema.read_from import ImageFolder, image_folders
from alignkd.storage.schema.sources import MAX_ADDITIONS, MAX_PIECES, MAX_SOURCES, Addition, StoredPiece, StoredSource
from alignkd.vlm.data.data_list import DataList, ListedSource
from alignkd.vlm.data.source import DataSet, Piece
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DataParts:
    """The fields of a manifest that describe the data.

    Attributes:
        fingerprint: entries of `data_fingerprint`.
        fields: `num_samples`, `sources`, `contiguous` and `additions`.
        added: samples of the last addition that the store does not have yet; 0 without one.
    """

    fingerprint: dict[str, str]
    fields: dict[str, Any]
    added: int = 0


def whole_list(samples: DataList, sets: Sequence[DataSet]) -> DataParts:
    """The parts of a store that is dumped in one go.

    One file without settings of its own is identified by `data_fingerprint` alone, as in all earlier stores.
    """
    if len(sets) > MAX_SOURCES:
        raise InputError(
            f"{sets[0].path}: is one of {len(sets)} data sets, at most {MAX_SOURCES} are possible; join them"
        )
    sources: list[StoredSource] | None = None
    fingerprint: dict[str, str] = {}
    is_plain = len(sets) == 1 and sets[0] == DataSet(path=sets[0].path, images=sets[0].images)
    if is_plain and (sets[0].path.is_file() or len(samples.pieces) == 1):
        fingerprint["conversations"] = _sha256_of_file(samples.sources[0]) or samples.pieces[0].sha256
    else:
        sources = [_stored(listed, data) for listed, data in zip(samples.sources, sets, strict=True)]
    contiguous = True if samples.is_sequential else None
    return DataParts(
        fingerprint=fingerprint,
        fields={"num_samples": len(samples), "sources": sources, "contiguous": contiguous, "additions": None},
    )


def continued_list(path: Path | str, stored: Manifest, samples: DataList, sets: Sequence[DataSet]) -> DataParts | None:
    """The parts of a store that exists: its own, and an addition if the list goes on after the store's data.

    Data sets are compared by the content of their files, never by names and times.

    Returns:
        None if the manifest does not identify its data, as that of a merged store, or has an older schema.

    Raises:
        StoreError: the list does not begin with the store's data; names the first file that differs.
    """
    known = _known(stored, samples) if stored.schema_version == SCHEMA_VERSION else None
    if known is None:
        return None
    match = _Match(path, known, samples, sets)
    additions = stored.additions or ()
    num_added = len(samples) - stored.num_samples
    if num_added:
        if len(additions) >= MAX_ADDITIONS:
            raise StoreError(
                f"store {path} has grown {MAX_ADDITIONS} times, more is not possible; dump the new data into another "
                "store and join both by `alignkd shards merge`"
            )
        added = match.added_sources(names_first=stored.sources is None and stored.additions is None)
        last = len(known) - 1
        grown = samples.sources[last if samples.sources[last].num_samples > known[last].num_samples else last + 1 :]
        new = Addition(
            added=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            sources=tuple(added),
            num_samples=num_added,
            contiguous=True if any(listed.is_sequential for listed in grown) else None,
        )
        additions = (*additions, new)
    return DataParts(
        fingerprint={name: value for name, value in stored.data_fingerprint.items() if name == "conversations"},
        fields={
            "num_samples": stored.first_samples,
            "sources": stored.sources,
            "contiguous": stored.contiguous,
            "additions": additions or None,
        },
        added=num_added,
    )


def image_folders_of(samples: DataList, sets: Sequence[DataSet]) -> tuple[ImageFolder, ...]:
    """Where the images of each data set are, for a manifest."""
    return image_folders((listed.start, data.images) for listed, data in zip(samples.sources, sets, strict=True))


def _known(stored: Manifest, samples: DataList) -> list[StoredSource] | None:
    """The data sets of a store with their files, None if the manifest does not identify them."""
    if stored.sources is not None or stored.additions is not None:
        known = stored.all_sources()
        return known if all(source.pieces for source in known) else None
    sha256 = stored.data_fingerprint.get("conversations")
    if sha256 is None or len(sha256) != 64:
        return None
    first = samples.sources[0]
    piece = StoredPiece(name=first.data.path.name, num_samples=stored.num_samples, sha256=sha256)
    return [StoredSource(name=first.name, num_samples=stored.num_samples, pieces=(piece,))]


def _stored(listed: ListedSource, data: DataSet) -> StoredSource:
    if len(listed.pieces) > MAX_PIECES:
        raise InputError(f"{data.path}: has {len(listed.pieces)} files, at most {MAX_PIECES} are possible; join them")
    pieces = tuple(
        StoredPiece(name=piece.name, num_samples=piece.num_samples, sha256=piece.sha256) for piece in listed.pieces
    )
    return StoredSource(
        name=listed.name,
        num_samples=listed.num_samples,
        pieces=pieces,
        share=None if data.share >= 1 else data.share,
        roles=_roles(data),
        system=data.system,
        pairs=True if data.pairs else None,
    )


def _roles(data: DataSet) -> dict[str, Any] | None:
    return dict(sorted(data.roles.items())) or None


class _Match:
    """Compares the data sets of a store with those of a list; raises StoreError at the first difference."""

    def __init__(
        self, path: Path | str, known: Sequence[StoredSource], samples: DataList, sets: Sequence[DataSet]
    ) -> None:
        self.path, self.known, self.samples, self.sets = path, known, samples, sets
        for number, source in enumerate(known):
            if number >= len(samples.sources):
                self._refuse(f"data set {source.name!r} with {source.num_samples} samples is not in the list")
            self._check_settings(source, sets[number])
            self._check_pieces(number)

    def added_sources(self, *, names_first: bool) -> list[StoredSource]:
        """What the list has after the store's data.

        Args:
            names_first: begin with the store's only data set also if nothing is added to it: its manifest lacks the
                name.
        """
        last = len(self.known) - 1
        before, listed, data = self.known[last], self.samples.sources[last], self.sets[last]
        own = _stored(listed, data)
        old, grown = before.pieces[-1], own.pieces[len(before.pieces) - 1]
        pieces = own.pieces[len(before.pieces) :]
        if grown.num_samples > old.num_samples:
            pieces = (grown.model_copy(update={"earlier": old.num_samples or None}), *pieces)
        found = []
        if pieces or names_first:
            num_samples = own.num_samples - before.num_samples
            found.append(own.model_copy(update={"name": before.name, "num_samples": num_samples, "pieces": pieces}))
        names = [source.name for source in self.known]
        for more, setting in zip(self.samples.sources[last + 1 :], self.sets[last + 1 :], strict=True):
            if more.name in names:
                self._refuse(f"data set {setting.path} is named {more.name!r}, which the store has; set data.name")
            found.append(_stored(more, setting))
        return found

    def _check_settings(self, source: StoredSource, data: DataSet) -> None:
        share = source.share or 1.0
        if share != data.share:
            self._refuse(f"data set {source.name!r} was taken with share {share}, now {data.share}")
        for name, before, now in (
            ("roles", source.roles or {}, dict(data.roles)),
            ("system", source.system, data.system),
            ("pairs", source.pairs, True if data.pairs else None),
        ):
            if before != now:
                shown = [repr(value)[:80] if value else "none" for value in (before, now)]
                self._refuse(f"data set {source.name!r} was read with {name} {shown[0]}, now {shown[1]}")

    def _check_pieces(self, number: int) -> None:
        source, listed = self.known[number], self.samples.sources[number]
        if _is_same_file(listed, source):
            return
        is_last, start = number == len(self.known) - 1, 0
        now = listed.pieces
        if len(now) < len(source.pieces):
            self._refuse(f"data set {source.name!r} had {len(source.pieces)} files, now {len(now)}")
        for place, piece in enumerate(source.pieces):
            may_grow = is_last and place == len(source.pieces) - 1
            if not _begins(listed, now[place], piece, start, may_grow=may_grow):
                self._refuse(
                    f"{piece.name} of data set {source.name!r} has {piece.num_samples} samples with sha256 "
                    f"{piece.sha256[:12]} in the store, {now[place].name} has {now[place].num_samples} with "
                    f"{now[place].sha256[:12]} now"
                )
            start += piece.num_samples
        if len(now) > len(source.pieces) and not is_last:
            self._refuse(
                f"data set {source.name!r} had {len(source.pieces)} files, now {len(now)}, and only the last data set "
                "can get more"
            )

    def _refuse(self, found: str) -> NoReturn:
        raise StoreError(
            f"store {self.path} was made from other data: {found}; keep the data of the store unchanged at the start "
            "of the list and add new files or data sets at its end, or choose another path"
        )


def _is_same_file(listed: ListedSource, source: StoredSource) -> bool:
    """Whether a data set is one file whose sha256 the store has, which is known without reading it again."""
    first, *more = source.pieces
    return not more and first.num_samples == len(listed.data) and first.sha256 == _sha256_of_file(listed)


def _sha256_of_file(listed: ListedSource) -> str | None:
    """sha256 of the bytes of a data set of one file, where it has them from its first pass over the file."""
    found: str | None = getattr(listed.data, "sha256", None)
    return found


def _begins(listed: ListedSource, now: Piece, piece: StoredPiece, start: int, *, may_grow: bool) -> bool:
    """Whether a file begins with what the store knows of it, and is not longer unless it may be."""
    if now.num_samples == piece.num_samples and now.sha256 == piece.sha256:
        return True
    if now.num_samples < piece.num_samples or (now.num_samples > piece.num_samples and not may_grow):
        return False
    known = Piece(name=piece.name, num_samples=piece.num_samples, sha256=piece.sha256)
    return listed.data.starts_with(known, start)
