"""Divergences of next-token distributions: one formula per file."""
