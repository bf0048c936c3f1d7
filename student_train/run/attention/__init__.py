"""The attention loss of a run: what is resolved or measured before the first step."""
