"""Comparison of the targets of two stores."""
