"""Views of a store for other libraries: zarr readers and webdataset."""
