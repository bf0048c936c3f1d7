"""A third family for tests: one layer over bytes, and as many vision tokens per image as it is wide."""
