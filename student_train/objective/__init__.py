"""The weighted sum of all loss terms (equation 7) for one batch."""
