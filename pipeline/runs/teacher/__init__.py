"""Runs the commands that write shards with a teacher, one worker each, and their status and results."""
