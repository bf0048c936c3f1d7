"""Runs a training as a process, and reads the status of one."""
