"""The six benchmarks of the paper's Table 1: their questions, answers files and scoring rules. Imports no torch."""
