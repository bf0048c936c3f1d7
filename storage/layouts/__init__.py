"""Layouts of a shard on disk: zarr, and webdataset (tar). `registry.py` lists them."""
