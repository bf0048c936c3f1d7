"""`alignkd shards`: inspect and maintain stores. It starts fast: heavy commands are imported when used."""

from importlib import import_module

import click

from alignkd.pipeline.console.interrupts import ends_on_interrupt
from alignkd.pipeline.shards.centres import centres
from alignkd.pipeline.shards.copying import convert, merge
from alignkd.pipeline.shards.diff import diff
from alignkd.pipeline.shards.export import export
from alignkd.pipeline.shards.ls import ls
from alignkd.pipeline.shards.push import push
from alignkd.pipeline.shards.select import select
from alignkd.pipeline.shards.show import show
from alignkd.pipeline.shards.stats import stats
from alignkd.pipeline.shards.upkeep import gc, index
from alignkd.pipeline.shards.verify import verify

# name -> module and name there; imported when used: `import` imports torch, `browse` lies in a room above this one's
_HEAVY = {
    "browse": ("alignkd.pipeline.browse.web.command", "browse"),
    "import": ("alignkd.pipeline.imported.command", "import_command"),
}


class Shards(click.Group):
    """The commands below, and those of `_HEAVY`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *_HEAVY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None if it does not exist."""
        if cmd_name not in _HEAVY:
            return super().get_command(ctx, cmd_name)
        module, name = _HEAVY[cmd_name]
        found: click.Command = getattr(import_module(module), name)
        return found


@click.group(cls=Shards)
@click.pass_context
def shards(context: click.Context) -> None:
    """Inspect, compare, convert and repair stores.

    STORE is a folder, or a URL such as s3://bucket/store or hf://datasets/org/name.

    Example: alignkd shards ls runs/store
    """
    context.with_resource(ends_on_interrupt())


for command in (ls, show, stats, verify, diff, select, convert, export, merge, centres, gc, index, push):
    shards.add_command(command)
