"""Trackers that are services (wandb, trackio): a process of their own follows the metrics files of the run."""
