"""Top room: command line, run configuration, planner and demo; wires the two phases together."""
