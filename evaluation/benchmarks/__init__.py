"""One folder per benchmark: how its question file is read and how answers are scored, as the original scripts do."""
