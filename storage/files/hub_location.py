"""Data sets of the Hugging Face hub as locations: hf://datasets/ORG/NAME, with a path and a revision."""

import re
from dataclasses import dataclass

from alignkd.storage.errors import StoreError

SCHEME = "hf"
EXPECTED = "hf://datasets/ORG/NAME[/PATH][@REVISION]"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,250}")
# revisions that contain a slash, in a URL whose path follows the revision
_SPECIAL = re.compile(r"(refs/(?:pr/\d+|convert/[A-Za-z0-9._-]+))(?:/|$)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class HubLocation:
    """A store in a data set of the hub.

    Attributes:
        repo: `ORG/NAME`.
        prefix: folder of the store in the data set; "" for the data set itself.
        revision: branch, tag or commit; None: the branch `main`.
    """

    repo: str
    prefix: str
    revision: str | None

    @property
    def url(self) -> str:
        """As the hub's own tools write it: the revision before the path."""
        revision = "" if self.revision is None else f"@{_quoted(self.revision)}"
        return f"{SCHEME}://datasets/{self.repo}{revision}/{self.prefix}".rstrip("/")

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, which no one can change."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def in_repo(self, path: str) -> str:
        """Path in the data set of a path relative to the store."""
        return f"{self.prefix}/{path}" if self.prefix else path


def is_hub_url(location: object) -> bool:
    """Whether a location names the hub; also a URL that has lost a slash."""
    return str(location).startswith(f"{SCHEME}:/")


def parse_hub_location(location: str) -> HubLocation:
    """Split `hf://datasets/ORG/NAME[/PATH][@REVISION]`, or `hf://datasets/ORG/NAME@REVISION/PATH` as the hub writes it.

    Raises:
        StoreError: another kind of repository, or a name, path or revision that cannot exist.
    """
    shown = re.sub(r"^hf:/+([^/@]*@)?", "hf://", location)
    if shown.count("@") < location.count("@"):
        raise StoreError(
            f"{shown}: has credentials before the host; `hf auth login`, or set HF_TOKEN, and leave them out"
        )
    location = shown
    kind, _, rest = location.partition(":/")[2].strip("/").partition("/")
    if kind != "datasets":
        raise StoreError(f"{location}: is not a data set of the hub; expected {EXPECTED}")
    org, _, rest = rest.partition("/")
    name, rest = _cut(rest, "/@")
    if not _NAME.fullmatch(org) or not _NAME.fullmatch(name):
        raise StoreError(f"{location}: {f'{org}/{name}'.rstrip('/')!r} is not ORG/NAME; expected {EXPECTED}")
    prefix, revision = _split(rest)
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise StoreError(f"{location}: revision is {revision!r}, expected a branch, a tag or a commit after '@'")
    if re.search(r"[?#@\\\s]", prefix) or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise StoreError(f"{location}: path is {prefix!r}, expected the folder of a store in the data set")
    return HubLocation(repo=f"{org}/{name}", prefix=prefix, revision=revision)


def _quoted(revision: str) -> str:
    """A revision in a URL in which a path may follow."""
    return revision if _SPECIAL.fullmatch(revision) else revision.replace("/", "%2F")


def _split(rest: str) -> tuple[str, str | None]:
    """Path and revision of what follows the name."""
    if not rest.startswith("@"):
        path, _, revision = rest.partition("@")
        return path.removeprefix("/").rstrip("/"), revision.replace("%2F", "/") if "@" in rest else None
    special = _SPECIAL.match(rest[1:])
    revision = special[1] if special else rest[1:].partition("/")[0]
    return rest[1 + len(revision) :].strip("/"), revision.replace("%2F", "/")


def _cut(text: str, ends: str) -> tuple[str, str]:
    """The text before the first of some characters, and the rest with it."""
    at = min((text.index(end) for end in ends if end in text), default=len(text))
    return text[:at], text[at:]
