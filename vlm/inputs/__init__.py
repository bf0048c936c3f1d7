"""Tokens, pixels and positions of a sample, the same in both phases."""
