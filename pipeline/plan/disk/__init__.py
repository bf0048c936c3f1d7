"""Bytes of a store before it is written: rows of every sample, and what each target takes."""
