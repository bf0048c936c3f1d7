"""Tools for whole stores: verify, compare, merge, convert, collect garbage."""
