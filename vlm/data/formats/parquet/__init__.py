"""Parquet files; `pyarrow` is imported by `reading.py` only."""
