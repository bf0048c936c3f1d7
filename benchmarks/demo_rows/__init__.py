"""Grids, trials and openings of the demo's rows: `demo_selection.py` and `demo_results.py`."""
