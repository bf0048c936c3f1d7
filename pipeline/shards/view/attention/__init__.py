"""The teacher's attention of a record: which is stored or computed, its grid, its place on an image, the drawing."""
