"""`alignkd layers`: figures of every attention layer of a teacher on some samples of its data."""
