"""One training run on disk: claim, settings, checkpoints, export."""
