"""Codecs of the teacher's output distributions. `registry.py` lists them."""
