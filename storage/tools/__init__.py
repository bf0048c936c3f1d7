"""Tools over whole stores: verify, compare, merge, convert, collect garbage."""
