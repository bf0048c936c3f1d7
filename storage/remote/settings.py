"""How remote stores are read: cache, block size, timeouts, repeated requests. Contains no credentials."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from alignkd.disk.cache_home import cache_home
from alignkd.storage.errors import StoreError

_VARIABLES = {
    "cache_folder": "ALIGNKD_CACHE",
    "cache_bytes": "ALIGNKD_CACHE_BYTES",
    "block_bytes": "ALIGNKD_CACHE_BLOCK_BYTES",
    "timeout_seconds": "ALIGNKD_REMOTE_TIMEOUT",
    "deadline_seconds": "ALIGNKD_REMOTE_DEADLINE",
    "attempts": "ALIGNKD_REMOTE_ATTEMPTS",
    "connections": "ALIGNKD_REMOTE_CONNECTIONS",
    "staging_folder": "ALIGNKD_STAGING",
}


class RemoteSettings(BaseModel):
    """Settings of the client of remote stores, each from an environment variable; pickled with a reader.

    Attributes:
        cache_folder: folder for blocks of remote files, shared by all processes and stores of a user.
        cache_bytes: limit of all blocks together; below one block nothing is cached and exact ranges are fetched.
        block_bytes: bytes of one request.
        timeout_seconds: limit of connecting, and of each wait for bytes.
        deadline_seconds: limit of one request with all its repetitions.
        attempts: how often a request is sent while connections break or the server is overloaded.
        connections: requests at the same time, per process.
        staging_folder: folder in which a shard is completed before it is uploaded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache_folder: Path = Field(default_factory=lambda: cache_home() / "alignkd")
    cache_bytes: ByteSize = Field(default=ByteSize(20 << 30), ge=0)
    block_bytes: ByteSize = Field(default=ByteSize(4 << 20), ge=4096, le=256 << 20)
    timeout_seconds: float = Field(default=30.0, gt=0, le=3600)
    deadline_seconds: float = Field(default=300.0, gt=0)
    attempts: int = Field(default=7, ge=1, le=20)
    connections: int = Field(default=16, ge=1, le=256)
    staging_folder: Path = Field(default_factory=lambda: Path(tempfile.gettempdir()) / f"alignkd-staging-{os.getuid()}")

    @property
    def cached(self) -> bool:
        return self.cache_bytes >= self.block_bytes


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> RemoteSettings:
    """Settings from the ALIGNKD_* variables; sizes may be written as 20GiB.

    Raises:
        StoreError: a variable that has no valid value.
    """
    given = {field: environment[name] for field, name in _VARIABLES.items() if environment.get(name)}
    for field in given.keys() & {"cache_folder", "staging_folder"}:
        # A shell expands `~` in an assignment, an `ENV` line of a container file does not.
        given[field] = os.path.expanduser(given[field])  # noqa: PTH111 (an unknown user stays as written)
    try:
        return RemoteSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = _VARIABLES[str(first["loc"][0])]
        raise StoreError(f"{name} is {first['input']!r}: {first['msg']}; correct or unset it") from None
