"""Machines of a cluster as namespaces of Linux on one machine, and what a training on them must survive."""
