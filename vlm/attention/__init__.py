"""Rows of attention of one decoder layer, and which vision tokens the text attends to most."""
