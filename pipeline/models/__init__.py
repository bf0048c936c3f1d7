"""Commands about one checkpoint: its sizes, its stem, and one question to it."""
