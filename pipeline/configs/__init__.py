"""The recipes that ship with the package, and their catalogue."""
