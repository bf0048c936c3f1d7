"""One entry of a data file, whatever its dialect, becomes a sample."""
