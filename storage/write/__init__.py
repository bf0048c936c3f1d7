"""Writing a store: shards in a temporary folder, published by a commit record."""
