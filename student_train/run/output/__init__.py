"""The output folder of a run: its claim, its lock, exports of its checkpoints."""
