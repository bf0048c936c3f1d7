"""Benchmark scores of `alignkd eval` side by side, with what makes two of them incomparable."""
