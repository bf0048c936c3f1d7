"""Devices, drivers and memory of the machine."""
