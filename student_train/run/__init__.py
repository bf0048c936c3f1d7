"""One training run: claim of its output, plan, mixture of stores, settings, start, extension."""
