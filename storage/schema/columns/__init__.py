"""The arrays that the shards of a store consist of."""
