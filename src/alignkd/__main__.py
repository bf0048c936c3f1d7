"""`python -m alignkd`: the `alignkd` command."""

from alignkd.pipeline.cli import main

if __name__ == "__main__":
    main(prog_name="alignkd")
