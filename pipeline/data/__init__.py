"""`alignkd data`: the contents of a data set, and the samples that a dump would use."""
