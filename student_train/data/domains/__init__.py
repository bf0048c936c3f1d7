"""Domains whose shares of the samples change during training."""
