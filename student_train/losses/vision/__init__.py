"""Losses on vision tokens: one formula per file."""
