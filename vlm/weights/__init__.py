"""Checkpoint files: finding, reading and writing weights."""
