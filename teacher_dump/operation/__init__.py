"""Operation of a dump: workers, stop signals, status, retries, out-of-memory."""
