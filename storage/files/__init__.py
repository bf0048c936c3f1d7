"""Files of a store: exclusive creation, append, checksums, reading of ranges."""
