"""Figures of attention by layer: how much of it falls on vision tokens, how sharp and how informative its rows are."""
