"""Checks of stored bytes, of records, and of the plausibility of targets."""
