"""`alignkd shards`: inspect and maintain stores. It starts fast, because nothing here imports torch."""

import click

from alignkd.pipeline.console.interrupts import ends_on_interrupt
from alignkd.pipeline.shards.copying import convert, merge
from alignkd.pipeline.shards.diff import diff
from alignkd.pipeline.shards.export import export
from alignkd.pipeline.shards.ls import ls
from alignkd.pipeline.shards.show import show
from alignkd.pipeline.shards.stats import stats
from alignkd.pipeline.shards.upkeep import gc, index
from alignkd.pipeline.shards.verify import verify


@click.group()
@click.pass_context
def shards(context: click.Context) -> None:
    """Inspect, compare, convert and repair stores.

    STORE is a folder, or a URL such as s3://bucket/store.

    Example: alignkd shards ls runs/store
    """
    context.with_resource(ends_on_interrupt())


for command in (ls, show, stats, verify, diff, convert, export, merge, gc, index):
    shards.add_command(command)
