"""The samples of a run: what stores and data say of each, and which of them are trained on."""
