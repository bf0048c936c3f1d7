"""Ranks, the environment of launchers, and stop requests that all ranks agree on."""
