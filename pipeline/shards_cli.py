"""`alignkd shards`: look into stores and care for them. Starts fast: nothing here imports torch."""

import click

from pipeline.interrupts import ends_on_interrupt
from pipeline.shards.copying import convert, merge
from pipeline.shards.diff import diff
from pipeline.shards.export import export
from pipeline.shards.ls import ls
from pipeline.shards.show import show
from pipeline.shards.stats import stats
from pipeline.shards.upkeep import gc, index
from pipeline.shards.verify import verify


@click.group()
@click.pass_context
def shards(context: click.Context) -> None:
    """Inspect, compare, convert and repair stores."""
    context.with_resource(ends_on_interrupt())


for command in (ls, show, stats, verify, diff, convert, export, merge, gc, index):
    shards.add_command(command)
