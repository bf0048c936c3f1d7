"""Readers of other tools' files, one format each. `registry.py` lists them."""
