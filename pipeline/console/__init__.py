"""What every command shares: printing, errors, output files, Ctrl-C, and the program around the commands."""
