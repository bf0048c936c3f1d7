"""Processor time of a teacher pass: milliseconds per sample, part by part.

    python benchmarks/dump_parts.py [--hidden 1024] [--layers 8] [--samples 16] [--entropy 2] [--profile compact]

Functions of the package are wrapped with a clock of their thread, and torch has one thread, so a part is its
computation without waiting. A part inside another one is not counted twice. Threads, queues and opening the shard are
in no part.
"""

import functools
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import torch
from cases.dump_inputs import write_inputs
from cases.measuring import machine
from dump import Bench

from alignkd.storage.layouts.registry import layout_names
from alignkd.storage.write.shard import ShardWriter
from alignkd.teacher_dump.operation import shard_thread
from alignkd.teacher_dump.preparation import PreparationThreads
from alignkd.teacher_dump.targets import attention, capture
from alignkd.teacher_dump.targets.logits import distribution, most_likely
from alignkd.vlm.attention import layer as attention_layer
from alignkd.vlm.families.mobilevlm.inputs import images
from alignkd.vlm.families.mobilevlm.model.attention import LlamaAttentionLayer
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM

FORWARD = ("tower and projector", "decoder", "splicing", "lm_head")
# module of the function, its name, what it does in addition to the parts inside it
PARTS = (
    (MobileVLM, "encode_images", "tower and projector"),
    (MobileVLM, "decoder_states", "decoder"),
    (MobileVLM, "embed", "splicing"),
    (capture, "keep_distribution", "lm_head"),
    (distribution, "keep_nucleus", "nucleus: entries and tail"),
    (most_likely, "_on_host", "nucleus: softmax, rest"),
    (most_likely, "select", "nucleus: most probable tokens"),
    (LlamaAttentionLayer, "row_inputs", "attention: rotation"),
    (attention_layer, "attention_rows", "attention: rows"),
    (attention, "encode", "encoding"),
    (attention, "vision_top_index", "focus"),
    (capture.Capture, "__call__", "indices and copies"),
    (PreparationThreads, "_prepare", "reading, tokens, hashes"),
    (images, "decode_image", "image: decoding"),
    (images.ImageProcessor, "process", "image: resizing, pixels"),
    (shard_thread, "make_record", "record"),
    (ShardWriter, "append", "append"),
    (ShardWriter, "commit", "commit"),
)


class Clock:
    """Processor seconds by part, minus those of the parts inside."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = threading.local()

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Replace a function by a timed one."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            stack = self._within.__dict__.setdefault("stack", [])
            stack.append(0.0)
            started = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                took = time.thread_time() - started
                self.seconds[part] += took - stack.pop()
                if stack:
                    stack[-1] += took

        setattr(owner, name, timed)


@click.command()
@click.option("--samples", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--hidden", type=click.IntRange(min=64), default=1024, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--token-budget", type=click.IntRange(min=1), default=2048, show_default=True)
@click.option("--shard-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--profile", type=click.Choice(["exact", "compact"]), default="compact", show_default=True)
@click.option("--entropy", type=click.FloatRange(0.01, 10.3), default=2.0, show_default=True)
@click.option("--backend", type=click.Choice(layout_names()), default="zarr", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(**options: Any) -> None:
    """Print a table of parts, the forward pass first."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        options |= {"folder": Path(folder), "device": "cpu", "dtype": "float32"}
        write_inputs(options["folder"], options)
        bench = Bench(options)
        print(f"{machine()}; one thread\n{bench.set(options['profile'], options['entropy'])}\n")
        bench.dump()  # warm up
        clock = Clock()
        for owner, name, part in PARTS:
            clock.watch(owner, name, part)
        total = sum(bench.dump().cpu_seconds for _ in range(options["rounds"]))
    scale = 1000 / (len(bench.prepared) * options["rounds"])
    beside = {part: seconds for part, seconds in clock.seconds.items() if part not in FORWARD}
    beside["no part"] = total - sum(clock.seconds.values())
    rows = [(part, clock.seconds[part]) for part in FORWARD if part in clock.seconds]
    rows += sorted(beside.items(), key=lambda row: -row[1])
    rows += [("beside the forward", sum(beside.values())), ("all", total)]
    print("| part | ms of a sample | share |\n|:--|--:|--:|")
    for part, seconds in rows:
        print(f"| {part} | {seconds * scale:.1f} | {seconds / total:.1%} |")


if __name__ == "__main__":
    main()
