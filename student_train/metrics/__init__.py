"""Figures of every step: file, log, progress bar, TensorBoard."""
