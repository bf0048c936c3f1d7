"""The demo: reading scenes of real handwritten digits, small enough to distil on a laptop."""
