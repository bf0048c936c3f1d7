"""Dump and training as processes: stages, signals, status."""
