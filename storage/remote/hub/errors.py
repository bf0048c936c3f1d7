"""What went wrong at the hub, from exceptions of its client: one line with the next step.

Classes are recognised by their names, because those of the transport belong to a package that differs between versions
of the client.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.remote.retry import TransientError

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
# of the IETF draft that the hub follows: "api";r=0;t=55
_RESET = re.compile(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
_REASONS = {
    "ConnectError": "no connection to the hub",
    "ProxyError": "the proxy refuses the connection",
    "ConnectTimeout": "no connection to the hub in time",
    "PoolTimeout": "no free connection in time",
    "ReadTimeout": "no answer of the hub in time",
    "WriteTimeout": "the hub takes no bytes in time",
    "ReadError": "the connection broke",
    "WriteError": "the connection broke",
    "CloseError": "the connection broke",
    "RemoteProtocolError": "the connection broke",
}


class ChangedError(TransientError):
    """The data set has another newest commit than expected, or something else happens there at the same time."""


class NoDataSetError(RemoteError):
    """The hub has no such data set, or does not show it to this user."""


class NoRevisionError(RemoteError):
    """The data set has no such branch, tag or commit."""


@dataclass(frozen=True, kw_only=True)
class HubProblem:
    """Where an exception was raised: what the line names."""

    subject: str
    repo: str
    revision: str | None
    page: str
    has_token: bool
    is_offline: bool


def problem_of(error: Exception, where: HubProblem) -> Exception:
    """The exception of ours for the same problem; `error` itself if it is one, or no exception of the client."""
    if isinstance(error, StoreError | AbsentError | TransientError):
        return error
    for cause in _causes(error):
        if (found := _known(cause, where)) is not None:
            return found
    if type(error).__module__.partition(".")[0] in ("huggingface_hub", "hf_xet", "builtins"):
        shown = " ".join(str(error).split())[:160]
        return RemoteError(f"{where.subject}: the hub's client fails ({type(error).__name__}: {shown}); run again")
    return error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what caused it: the client wraps some in others of no meaning."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _known(error: BaseException, where: HubProblem) -> Exception | None:
    names = {base.__name__ for base in type(error).__mro__}
    subject = where.subject
    if where.is_offline and names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "IncompleteSnapshotError"}:
        return RemoteError(
            f"{subject}: HF_HUB_OFFLINE is set, and the hub's cache does not hold it; unset it, or fetch the store "
            f"while online: `hf download {where.repo} --repo-type dataset{_option(where)}`"
        )
    if "GatedRepoError" in names:
        login = "" if where.has_token else ", then `hf auth login`"
        return RemoteError(f"{subject}: the data set is gated; ask for access on {where.page}{login}")
    if "RepositoryNotFoundError" in names:
        return NoDataSetError(f"{subject}: {_not_found(where)}")
    if "RevisionNotFoundError" in names:
        return NoRevisionError(
            f"{subject}: the data set has no revision {where.revision!r}; choose a branch, a tag or a commit of "
            f"{where.page}"
        )
    if names & {"RemoteEntryNotFoundError", "EntryNotFoundError"} and "LocalEntryNotFoundError" not in names:
        return AbsentError()
    if "HFValidationError" in names:
        return RemoteError(f"{subject}: {where.repo!r} is not a name that the hub allows; correct it")
    if "HfHubHTTPError" in names:
        return _refused(error, where)
    if "TransportError" in names or type(error).__name__ in _REASONS:
        name = type(error).__name__
        return TransientError(_REASONS.get(name, f"the connection failed ({name})"))
    return None


def _refused(error: BaseException, where: HubProblem) -> Exception:
    response = getattr(error, "response", None)
    status = int(getattr(response, "status_code", 0) or 0)
    if status == 401:
        step = "`hf auth login` with a valid one, or correct HF_TOKEN" if where.has_token else "`hf auth login`"
        refused = "refuses the token" if where.has_token else "requires a token"
        return RemoteError(f"{where.subject}: the hub {refused}; {step}")
    if status == 403:
        return RemoteError(
            f"{where.subject}: the token may not do this; `hf auth login` with one that may (to push, write access "
            f"to {where.repo})"
        )
    if status == 404:
        return AbsentError()
    if status in (409, 412):
        return ChangedError(f"the hub answers {status}, others change the data set")
    if status == 429:
        more = "" if where.has_token else "; with a token (`hf auth login`) it is higher"
        return TransientError(f"the hub answers 429, its rate limit is reached{more}", _reset_seconds(response))
    if status in _TRANSIENT or status >= 500:
        return TransientError(f"the hub answers {status}")
    said = " ".join(str(getattr(error, "server_message", None) or "").split())[:160]
    return RemoteError(
        f"{where.subject}: the hub answers {status}{f' ({said})' if said else ''}; correct it, run again"
    )


def _reset_seconds(response: object) -> float:
    """How long the hub asks to wait, 0 if it does not say."""
    headers = getattr(response, "headers", {})
    if (asked := str(headers.get("retry-after", ""))).isdecimal():
        return float(asked)
    found = _RESET.search(str(headers.get("ratelimit", "")))
    return 0.0 if found is None else float(found[1])


def _not_found(where: HubProblem) -> str:
    if where.has_token:
        return "no such data set, or the token may not read it; check the name, and the token with `hf auth whoami`"
    return "no such data set, or it is private; check the name, or `hf auth login` (or set HF_TOKEN)"


def _option(where: HubProblem) -> str:
    return "" if where.revision is None else f" --revision {where.revision}"
