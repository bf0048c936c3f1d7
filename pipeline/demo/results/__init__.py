"""Figures of the demo: accuracy on questions that need the picture, baselines, intervals, the report."""
