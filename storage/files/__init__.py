"""Files of a store: locations, exclusive creation, append, checksums, reads of ranges."""
