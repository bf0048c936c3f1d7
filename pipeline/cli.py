"""The `alignkd` command: the list of its commands, each of which is a file in `commands/`."""

import click

from alignkd.pipeline.console.program import Program
from alignkd.version import __version__

# a name is both the file in `commands/` and the command in it
COMMANDS = (
    "ask",
    "configs",
    "data",
    "demo",
    "dump",
    "eval",
    "generate",
    "layers",
    "models",
    "plan",
    "report",
    "run",
    "shards",
    "stem",
    "train",
)


@click.group(cls=Program, package="alignkd.pipeline.commands", modules=COMMANDS)
@click.version_option(__version__, prog_name="alignkd")
def main() -> None:
    """Offline distillation of vision-language models.

    Run the teacher once and store its targets, then train any number of students from the store.

    Example: alignkd run run.yaml
    """


if __name__ == "__main__":
    main()
