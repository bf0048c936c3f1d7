"""Which samples `alignkd data filter` drops, by their answers."""
