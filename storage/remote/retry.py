"""Repeating requests: one policy for S3 and HTTP, bounded in number and in time."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from alignkd.storage.errors import RemoteError
from alignkd.storage.remote.settings import RemoteSettings

T = TypeVar("T")


class TransientError(Exception):
    """A failure that may be gone at the next attempt; the message is a reason without secrets."""


def with_retries(settings: RemoteSettings, subject: str, work: Callable[[float], T]) -> T:
    """Run `work(deadline)` until it does not raise TransientError; `deadline` is a time.monotonic() value.

    Raises:
        RemoteError: all attempts failed, or the time is up; names the subject and the last reason.
    """
    started = time.monotonic()
    deadline = started + settings.deadline_seconds
    for attempt in range(1, settings.attempts + 1):
        try:
            return work(deadline)
        except TransientError as error:
            reason = str(error)
        pause = _pause(settings, attempt)
        if attempt == settings.attempts or time.monotonic() + pause > deadline:
            break
        time.sleep(pause)
    raise RemoteError(
        f"{subject}: {reason}, {attempt} attempts in {time.monotonic() - started:.1f} s; "
        "check the network and the server, and run again"
    )


def _pause(settings: RemoteSettings, attempt: int) -> float:
    """Exponential, with jitter so that many readers do not come back together."""
    longest = min(settings.max_backoff_seconds, settings.first_backoff_seconds * 2.0 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)
