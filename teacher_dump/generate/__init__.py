"""The answers that a teacher writes to questions; the entry point is in `generate.py`."""
