"""Data sets as people have them: JSON, gzipped JSON, Parquet, tars of WebDataset, folders and patterns of such files.

`paths.py` finds the files, `recognise.py` their format; one module per format reads entries; `source.py` joins files.
"""
