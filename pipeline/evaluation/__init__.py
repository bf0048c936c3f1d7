"""`alignkd eval`: a checkpoint answers the questions of benchmarks, in processes that may be stopped at any time."""
