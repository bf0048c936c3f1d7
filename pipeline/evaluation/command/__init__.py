"""The command `alignkd eval`: the section `eval` of a configuration, and the end of the command."""
