"""Pictures of attention that lie in the output folder of a run, as `alignkd shards show` and `alignkd layers` draw."""

import base64
from collections.abc import Iterator, Sequence

from alignkd.disk.opening import read_regular
from alignkd.pipeline.console.picture_file import LAYERS, SHARDS_SHOW, is_drawn_by
from alignkd.pipeline.report.html.markup import Markup, element
from alignkd.pipeline.report.load import Run

LARGEST_BYTES = 4 << 20
MOST_PICTURES = 12


def pictures_of(runs: Sequence[Run]) -> list[Markup]:
    """Figures with the pictures in the page itself: the first ones of each run, by name."""
    return [figure for run in runs for figure in list(_of(run))[:MOST_PICTURES]]


def _of(run: Run) -> Iterator[Markup]:
    is_ours = [is_drawn_by(command) for command in (SHARDS_SHOW, LAYERS)]
    for path in sorted(run.path.glob("*.png")):
        try:
            # no pipe, which would be waited for
            if (
                not path.is_file()
                or path.stat().st_size > LARGEST_BYTES
                or not any(is_drawn(path) for is_drawn in is_ours)
            ):
                continue
            content = base64.b64encode(read_regular(path)).decode("ascii")
        except OSError:
            continue  # a picture that vanishes is no reason to write no page
        caption = element("figcaption", f"{run.name}: {path.name}")
        yield element("figure", caption, element("img", alt=path.name, src=f"data:image/png;base64,{content}"))
