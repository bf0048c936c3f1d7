"""`alignkd shards browse`: a store as pages for a web browser."""
