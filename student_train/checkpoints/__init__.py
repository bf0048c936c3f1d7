"""Checkpoints of a run, and the student that is exported from one."""
