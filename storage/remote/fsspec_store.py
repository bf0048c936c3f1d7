"""A store in Google Cloud Storage (gs://) or Azure (az://, abfs://), read-only, through fsspec.

fsspec knows the packages that read these places, gcsfs and adlfs; they find the credentials of their users. Writing
would need conditional requests, which fsspec does not have.
"""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.location import FSSPEC_EXTRAS, parse_location
from alignkd.storage.remote.objects import AbsentError, Listed, Span, whole
from alignkd.storage.remote.retry import TransientError, with_retries
from alignkd.storage.remote.settings import RemoteSettings
from alignkd.storage.schema.commit_record import SHARDS

T = TypeVar("T")
_STEPS = {
    "gcs": "check GOOGLE_APPLICATION_CREDENTIALS, and the permissions of the bucket",
    "azure": "check AZURE_STORAGE_ACCOUNT_NAME or AZURE_STORAGE_CONNECTION_STRING, and permissions of the container",
}
# they log errors with tracebacks, which Python prints where nobody has asked for logs
_LOGGERS = ("adlfs", "azure", "fsspec", "gcsfs", "google")
_TRANSIENT = ("TimeoutError", "ConnectionError", "ClientError", "ServiceRequestError", "ServiceResponseError")


class FsspecStore:
    """See `alignkd.storage.remote.objects.ListedStore`."""

    def __init__(self, location: str, settings: RemoteSettings) -> None:
        """Raises StoreError for an invalid URL; imports and requests nothing."""
        parsed = parse_location(location)
        self.location = self.identity = parsed.url
        self.settings, self._scheme = settings, parsed.scheme
        # a shard's file never changes
        self._totals: dict[str, int] = {}
        self._system: Any = None
        self._root = ""
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_system": None}

    def get(self, path: str, limit: int) -> bytes:
        return whole(self.get_range(path, 0, limit), limit, self._subject(path))

    def get_range(self, path: str, start: int, stop: int) -> Span:
        def attempt(system: Any) -> Span:
            # a request for bytes behind the end is an error of some services, so the size is asked for first
            if (total := self._totals.get(path)) is None:
                total = int(system.info(self._key(path))["size"])
                if path.startswith(f"{SHARDS}/"):
                    self._totals[path] = total
            stop_here = min(stop, total)
            if start >= stop_here:
                return Span(data=b"", total=total)
            data = bytes(system.cat_file(self._key(path), start=start, end=stop_here))
            if len(data) != stop_here - start:
                raise TransientError(f"the answer holds {len(data)} bytes, not {stop_here - start}")
            return Span(data=data, total=total)

        return self._repeated(path, attempt)

    def size(self, path: str) -> int | None:
        try:
            return self._repeated(path, lambda system: int(system.info(self._key(path))["size"]))
        except AbsentError:
            return None

    def listed(self, folder: str) -> Iterator[Listed]:
        """Every object below a folder ("" = the whole store)."""

        def attempt(system: Any) -> dict[str, Any]:
            system.invalidate_cache()
            found: dict[str, Any] = system.find(self._key(folder), detail=True)
            return found

        start = len(self._root) + 1
        for name, entry in self._repeated(folder, attempt).items():
            yield Listed(path=name[start:], num_bytes=int(entry["size"]))

    def names(self, folder: str) -> list[str]:
        """Names of objects and folders directly in a folder ("" = the store)."""

        def attempt(system: Any) -> list[str]:
            system.invalidate_cache()
            return [str(name) for name in system.ls(self._key(folder), detail=False)]

        try:
            found = self._repeated(folder, attempt)
        except AbsentError:
            return []
        return [name for path in found if (name := path.rstrip("/")[len(self._key(folder)) + 1 :])]

    def _repeated(self, path: str, work: Callable[[Any], T]) -> T:
        def attempt(deadline: float) -> T:
            system = self._connected()
            try:
                return work(system)
            except FileNotFoundError:
                raise AbsentError from None
            except (StoreError, TransientError):
                raise
            except Exception as error:  # each package raises classes of its own, some of a service's library
                raise self._translated(error, path) from None

        return with_retries(self.settings, self._subject(path), attempt)

    def _translated(self, error: Exception, path: str) -> Exception:
        """Only the class is shown: messages contain URLs, some with signatures."""
        names = {base.__name__ for base in type(error).__mro__}
        if names & set(_TRANSIENT):
            return TransientError(f"the connection failed ({type(error).__name__})")
        step = _STEPS[FSSPEC_EXTRAS[self._scheme]]
        return RemoteError(f"{self._subject(path)}: the service refuses ({type(error).__name__}); {step}")

    def _connected(self) -> Any:
        """This process's file system: its threads and connections must not be shared with a forked parent."""
        if self._system is None or self._pid != os.getpid():
            self._system, self._pid = self._opened(), os.getpid()
            # without scheme and account
            self._root = str(self._system._strip_protocol(self.location)).rstrip("/")
        return self._system

    def _opened(self) -> Any:
        from fsspec.core import url_to_fs

        for name in _LOGGERS:
            if not (logger := logging.getLogger(name)).handlers:
                logger.addHandler(logging.NullHandler())
        try:
            system, _ = url_to_fs(self.location, skip_instance_cache=True)
        except ImportError:
            extra = FSSPEC_EXTRAS[self._scheme]
            raise StoreError(
                f"store {self.location}: {self._scheme}:// stores need another package; pip install 'alignkd[{extra}]'"
            ) from None
        except Exception as error:  # no account, no credentials
            raise self._translated(error, "") from None
        return system

    def _key(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _subject(self, path: str) -> str:
        return f"{self.location}/{path}".rstrip("/")
