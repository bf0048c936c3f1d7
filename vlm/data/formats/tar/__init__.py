"""Tars of WebDataset: files with one name and several suffixes are one sample."""
