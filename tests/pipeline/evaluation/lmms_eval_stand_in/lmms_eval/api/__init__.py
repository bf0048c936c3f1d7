"""Models and requests."""
