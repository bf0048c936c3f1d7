"""`alignkd data`: what a data set holds and what a dump would use of it."""
