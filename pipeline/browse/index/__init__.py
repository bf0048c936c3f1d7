"""The index of a store: figures of every sample, filters, sorting, histograms, search. Start at `store_index.py`."""
