"""What a store states about itself: manifest, columns, plan of shards, commit records."""
