"""Sections of the YAML file that belong to no phase: evaluation, generated answers, lists of stores."""
