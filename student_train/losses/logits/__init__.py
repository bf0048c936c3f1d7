"""Losses on next-token distributions: one formula per file, for full and truncated teachers."""
