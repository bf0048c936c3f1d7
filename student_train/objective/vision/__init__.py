"""Terms on vision tokens."""
