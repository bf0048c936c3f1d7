"""The page of runs that are still going: written again and again until they are finished."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.report.report import Report
from alignkd.vlm.errors import InputError

logger = logging.getLogger(__name__)


def write_page(file: Path, report: Report, *, every: float | None) -> None:
    """Write the page; a browser that shows it loads it again while it is written every so many seconds."""
    is_going = every is not None and report.is_unfinished
    write_whole(file, report.html(refresh=math.ceil(every) if is_going and every is not None else None))


def follow_runs(file: Path, make: Callable[[], Report], *, every: float) -> None:
    """Write the page every so many seconds, until all runs are finished.

    A run that cannot be read now, because it is started again for example, is tried again the next time.
    """
    last = ""
    while True:
        time.sleep(every)
        try:
            report = make()
        except InputError as error:
            if str(error) != last:
                logger.warning("%s; the page stays as it is until the run can be read", error)
            last = str(error)
            continue
        write_page(file, report, every=every)
        if not report.is_unfinished:
            return
