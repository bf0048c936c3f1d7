"""Random access to the entries of a large JSON array."""
