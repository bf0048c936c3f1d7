"""Choosing samples of a store by the teacher's targets."""
