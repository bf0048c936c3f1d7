"""The parts of which the mixture of a run is made."""
