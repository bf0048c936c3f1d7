"""The answers that a teacher writes to questions; `generate.py` is the entry."""
