"""The cached targets of one sample, and the checks that every record passes."""
