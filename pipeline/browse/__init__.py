"""`alignkd shards browse`: a store in a web browser."""
