"""The demo: models that read scenes of real handwritten digits, small enough to distil on a laptop."""
