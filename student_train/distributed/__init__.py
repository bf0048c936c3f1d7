"""Ranks, the environment of launchers, and stop requests."""
