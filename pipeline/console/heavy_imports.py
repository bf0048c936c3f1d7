"""Imports of torch and of what builds on it, without the work of the garbage collector."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Switch the garbage collector off inside the block, and exclude from it what was imported there.

    These imports create a million objects that stay. The collector would look at all of them again and again, at first
    while their number grows and then during the command. That takes a quarter of the start of `alignkd train`.
    """
    was_enabled, modules_before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules_before:
            gc.freeze()
        if was_enabled:
            gc.enable()
