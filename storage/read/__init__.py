"""Reading a committed store."""
