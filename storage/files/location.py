"""Where a store can be: a folder, a bucket or a web server. Parses locations; loads no client and uses no network.

A location never contains credentials. They come from the environment, so that no manifest, log or error can show them.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from alignkd.storage.errors import StoreError
from alignkd.storage.files import hub_location

# read through fsspec: scheme -> the extra of alignkd that installs its package
FSSPEC_EXTRAS = {"gs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
REMOTE_SCHEMES = ("s3", "http", "https", hub_location.SCHEME, *FSSPEC_EXTRAS)
_WRITABLE_SCHEMES = ("s3",)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# CONTAINER@ACCOUNT.dfs.core.windows.net
_CONTAINER = re.compile(r"[a-z0-9-]+@[a-z0-9.-]+")
# schemes of other tools: a path that starts with one of them is a URL that has lost a slash
_KNOWN_SCHEMES = (
    "gcs",
    "wasb",
    "wasbs",
    "hdfs",
    "oss",
    "ftp",
    "sftp",
    "file",
    *REMOTE_SCHEMES,
)
_PLACES = (
    "a folder, s3://BUCKET/PREFIX or, to read only, hf://datasets/ORG/NAME, http(s)://HOST/PATH, gs://BUCKET/PREFIX or "
    "az://CONTAINER/PREFIX; mount or copy the place to a folder"
)


@dataclass(frozen=True, kw_only=True)
class Location:
    """A parsed URL; for s3, gs and az the `host` is the bucket or container."""

    scheme: str
    host: str
    prefix: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}/{self.prefix}".rstrip("/")


def as_location(path: Path | str) -> Path | str:
    """A folder as a Path, a URL as a text; also a URL that has lost a slash because it was made a Path."""
    scheme, _, rest = str(path).partition(":/")
    if scheme in REMOTE_SCHEMES and rest:
        return f"{scheme}://{rest.lstrip('/')}"
    return path if "://" in str(path) else Path(path)


def check_location(location: Path | str, *, writing: bool = False) -> None:
    """Refuse a place that cannot hold a store.

    Args:
        writing: the store is to be written.

    Raises:
        StoreError: an unsupported scheme, a read-only scheme, or a URL without a bucket or a host.
    """
    scheme, separator, rest = str(location).partition(":/")
    if not separator or not _SCHEME.fullmatch(scheme) or not (rest.startswith("/") or scheme in _KNOWN_SCHEMES):
        return
    # without a password or a token
    host = re.split(r"[?#]", rest.lstrip("/").rpartition("@")[2])[0]
    url = f"{scheme}://{rest.lstrip('/')}"
    if scheme == hub_location.SCHEME:
        place = hub_location.parse_hub_location(url)
        if writing:
            raise StoreError(
                f"store {place.url}: is not written by this command; write to a folder, then "
                f"`alignkd shards push FOLDER {place.url}`"
            )
        return
    if scheme not in REMOTE_SCHEMES:
        raise StoreError(f"store {scheme}://{host}: scheme is {scheme}, expected {_PLACES}")
    if writing and scheme not in _WRITABLE_SCHEMES:
        raise StoreError(f"store {scheme}://{host}: can only be read; write to a folder or to s3://BUCKET/PREFIX")
    parse_location(url)


def parse_location(location: str) -> Location:
    """Split a URL into its parts.

    Raises:
        StoreError: credentials in the URL (the message does not repeat them), a query, or no bucket or host.
    """
    try:
        parts = urlsplit(location)
        scheme, host, port, prefix = parts.scheme, parts.hostname or "", parts.port, parts.path.strip("/")
    except ValueError:
        raise StoreError("store location is not a URL; expected s3://BUCKET/PREFIX or https://HOST/PATH") from None
    if "@" in parts.netloc and not (scheme in ("abfs", "abfss") and _CONTAINER.fullmatch(parts.netloc)):
        raise StoreError(
            f"{scheme}://...@{host}/{prefix}: has credentials in the URL; give them in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (S3 only) and the URL without them"
        )
    shown = f"{scheme}://{host}/{prefix}"
    if parts.query or parts.fragment:
        raise StoreError(f"{shown}: has a query or a fragment; give the URL of the store's folder alone")
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise StoreError(f"{shown}: has an empty or relative part; give the URL of the store's folder")
    if scheme == "s3" and (port or not _BUCKET.fullmatch(parts.netloc)):
        raise StoreError(f"{shown}: {parts.netloc!r} is not a bucket name; expected s3://BUCKET/PREFIX")
    if not host:
        raise StoreError(f"{shown}: has no host; expected https://HOST/PATH")
    return Location(scheme=scheme, host=parts.netloc, prefix=prefix)
