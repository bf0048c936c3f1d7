"""The steps of `benchmarks/gpu_check.py`, one file each: `run(check)` records figures and problems."""
