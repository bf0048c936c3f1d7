"""Codecs of the teacher's output distributions."""
