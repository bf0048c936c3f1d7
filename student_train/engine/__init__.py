"""The DeepSpeed engine and its settings."""
