"""A command that takes arguments and has subcommands, such as `alignkd train` with `alignkd train export`."""

from typing import Any

import click


class CommandWithSubcommands(click.Group):
    """A command that is itself called with arguments, and has subcommands: a first argument that is the name of one.

    A file of that name is given with its folder, as `./export`.
    """

    allow_interspersed_args = True
    allow_extra_args = False

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """As in click, but the usage of a subcommand does not show the arguments of this command."""
        params = super().get_params(ctx)
        return params if ctx.command is self else [one for one in params if not isinstance(one, click.Argument)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As a command, or leave all arguments to the subcommand."""
        if args[:1] and args[0] in self.commands:
            ctx.invoked_subcommand = args[0]
            ctx.args = list(args)
            return ctx.args
        return click.Command.parse_args(self, ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command itself or the subcommand."""
        if ctx.invoked_subcommand is None:
            return click.Command.invoke(self, ctx)
        name, command, args = self.resolve_command(ctx, ctx.args)
        assert command is not None
        with command.make_context(name, args, parent=ctx) as inner:
            return inner.command.invoke(inner)
