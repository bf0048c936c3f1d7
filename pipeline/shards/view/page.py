"""A record as a page of text for a terminal."""

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from alignkd.pipeline.shards.view.advantage_view import advantage_lines
from alignkd.pipeline.shards.view.layer_view import layer_lines
from alignkd.pipeline.shards.view.sequence_view import sequence_lines

WIDTH = 110
# repetitions of a piece that are counted, not shown: vision tokens of an image, if each has an id
MANY = 8


def page(seen: dict[str, Any], note: str | None = None) -> str:
    """The summary of a record (`alignkd.pipeline.shards.view.record_view.summary`) as text.

    Args:
        seen: the summary.
        note: line that replaces the teacher's probabilities, if there are none.
    """
    lines = [f"{name:<14}{seen[name]}" for name in ("id", "index", "key")]
    for image, sha256 in zip(seen["images"], seen["image_sha256"], strict=True):
        lines += [f"{'image':<14}{image}", f"{'image_sha256':<14}{sha256}"]
    lines += [f"{turn['from']:>12}: {turn['value']!r}" for turn in seen["conversations"]]
    vision = ", ".join(f"{first}..{last}" for first, last in seen["vision_spans"]) or "none"
    lines.append(
        f"{'sequence':<14}{seen['sequence_length']} positions, vision {vision}, {seen['num_queries']} text queries, "
        f"{len(seen['supervised'])} supervised"
    )
    lines += [f"{'tokens':<14}pieces, supervised ones in [ ]", *token_lines(seen)]
    lines += [f"{name:<23} {target['dtype']:<9}{target['shape']}" for name, target in seen["targets"].items()]
    lines += advantage_lines(seen["visual_advantage"])
    lines += sequence_lines(seen["sequence_logprob"])
    lines += layer_lines(seen["attention_layers"])
    if seen["from_stem"]:
        lines.append(
            f"{'not stored':<24}{', '.join(seen['from_stem'])}: training computes them from the teacher's stem"
        )
    lines += [] if note is None else [note]
    lines += [position_line(row) for row in seen["supervised"]]
    if seen["focus"]:
        rank = len(seen["focus"])
        lines.append(f"focus (rank of each vision token among the top {rank})")
        first = 0
        for number, (rows, columns) in enumerate(seen["vision_grids"]):
            lines += [f"image {number + 1}"] if seen["num_images"] > 1 else []
            lines += focus_grid(seen["focus"], rows, columns, first)
            first += rows * columns
    return "\n".join(lines)


def token_lines(seen: dict[str, Any]) -> list[str]:
    """The pieces of the input, wrapped; supervised ones in brackets. `<image>*64` is the same piece 64 times."""
    pairs = zip(seen["input_pieces"], seen["input_supervised"], strict=True)
    words = " ".join(
        " ".join([f"[{piece}]" if learnt else piece] * count) if count < MANY else f"{piece}*{count}"
        for (piece, learnt), count in ((pair, len(list(run))) for pair, run in groupby(pairs))
    )
    return textwrap.wrap(
        words, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def focus_grid(focus: Sequence[int], rows: int, columns: int, first: int = 0) -> list[str]:
    """The vision tokens of an image as a grid: ranks from 1 for focused tokens, a dot for others.

    Args:
        first: number of the image's first token among those of all images.
    """
    rank = {token - first: str(place + 1) for place, token in enumerate(focus)}
    cells = [f"{rank.get(token, '.'):>3}" for token in range(rows * columns)]
    return ["".join(cells[row * columns : (row + 1) * columns]) for row in range(rows)]


def position_line(row: dict[str, Any]) -> str:
    """One supervised position: its label and the teacher's predictions."""
    head = f"  @{row['position']:<5} label {row['label_piece']:<14}"
    if "top" in row:
        best = "  ".join(f"{entry['piece']} {entry['prob']:.3f}" for entry in row["top"])
        tail = "unknown" if row["tail_mass"] is None else f"{row['tail_mass']:.1e}"
        return f"{head} p {row['label_prob']:.3f}  tail {tail}  top  {best}"
    if "draws" in row:
        best = "  ".join(f"{entry['piece']} {entry['count']}x" for entry in row["draws"])
        return f"{head} entropy {row['entropy']:.3f}  {row['distinct']} of {row['num_draws']} draws differ  {best}"
    return head.rstrip()
