"""The steps of `benchmarks/gpu_check.py`, one file each: `run(check)` notes figures and what is wrong."""
