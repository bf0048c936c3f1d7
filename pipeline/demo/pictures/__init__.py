"""The pictures of the demo: attention maps and example predictions."""
