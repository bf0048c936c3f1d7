"""Stores in data sets of the Hugging Face hub: reading, and what `alignkd shards push` sends."""
