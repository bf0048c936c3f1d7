"""Repeated requests: one policy for S3 and HTTP, bounded in number and in time."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from alignkd.storage.errors import RemoteError
from alignkd.storage.remote.settings import RemoteSettings

T = TypeVar("T")
# pause before the second attempt, and the longest one; each is twice the one before
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0


class TransientError(Exception):
    """A failure that may not occur at the next attempt; the message is a reason without secrets."""

    def __init__(self, reason: str, after_seconds: float = 0.0) -> None:
        """`after_seconds`: how long the server asks to wait before the next attempt."""
        super().__init__(reason)
        self.after_seconds = after_seconds


def with_retries(settings: RemoteSettings, subject: str, work: Callable[[float], T]) -> T:
    """Run `work(deadline)` until it does not raise TransientError; `deadline` is a time.monotonic() value.

    Raises:
        RemoteError: all attempts failed, or the deadline is reached; names the subject and the last reason.
    """
    started = time.monotonic()
    deadline = started + settings.deadline_seconds
    for attempt in range(1, settings.attempts + 1):
        try:
            return work(deadline)
        except TransientError as error:
            reason, asked = str(error), error.after_seconds
        pause = max(pause_seconds(attempt), asked)
        if attempt == settings.attempts or time.monotonic() + pause > deadline:
            break
        time.sleep(pause)
    raise RemoteError(
        f"{subject}: {reason}, {attempt} attempts in {time.monotonic() - started:.1f} s; "
        "check the network and the server, and run again"
    )


def pause_seconds(attempt: int) -> float:
    """Seconds before the next attempt: exponential, with jitter so that many readers do not repeat together."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)
