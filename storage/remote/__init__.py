"""Stores in a bucket or behind a web server."""
