"""Clients of stores in a bucket or behind a web server."""
