"""The answers of an entry: which are trained on, which a teacher wrote, which are missing."""
