"""Whether stores, student and machine fit a run, and where its targets come from."""
