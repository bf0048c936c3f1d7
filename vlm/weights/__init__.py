"""Checkpoint files of every family: finding them, on disk or on the hub, and single safetensors files."""
