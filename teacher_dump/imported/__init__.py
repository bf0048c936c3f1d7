"""Targets that other tools computed, brought into a store. Start with `run.py`."""
