"""Runs the phases of a configuration: stages, processes and their signals, status and results."""
