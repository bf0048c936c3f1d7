"""The model: vision tower, projector, decoder, first-layer attention."""
