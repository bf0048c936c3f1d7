"""`alignkd shards browse`: a page in a browser that shows what a store holds."""
