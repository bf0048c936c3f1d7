"""Stores in buckets with the protocol of S3."""
