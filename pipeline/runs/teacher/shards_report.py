"""What commands that write shards print: unusable samples, and a stop by a signal."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from alignkd.pipeline.console.printing import say
from alignkd.teacher_dump.operation.stops import DumpStopped, end_process

MAX_LISTED = 10


def listed_unusable(
    unusable: Sequence[tuple[int, str, str]], *, more: str, where: Callable[[int], str] = "index {}".format
) -> Iterator[str]:
    """The first few unusable samples, and how many more there are.

    Args:
        unusable: (index, id, reason) of each.
        more: where the others are listed.
        where: shows an index.
    """
    for index, sample_id, reason in unusable[:MAX_LISTED]:
        yield f"unusable: sample {sample_id!r} ({where(index)}): {reason}"
    if (rest := len(unusable) - MAX_LISTED) > 0:
        yield f"unusable: {rest} more, {more}"


@contextmanager
def ending_when_abandoned() -> Iterator[None]:
    """If a signal abandons the current shard, print one line and end the process with the signal's exit code."""
    try:
        yield
    except DumpStopped as stop:
        say(f"{stop}; run the same command again to resume")
        end_process(128 + stop.signal)


def end_if_interrupted(signal: int) -> None:
    """End the process with the exit code of `signal`, after which no other shard was started; 0 is no signal."""
    if signal:
        say("stopped after the current shard; run the same command again to resume")
        end_process(128 + signal)
