"""Validation during training: losses of samples that are not trained on, the best state, the early end."""
