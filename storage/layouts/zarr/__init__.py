"""The layout `zarr`: a zarr v3 group with one sharding file per array."""
