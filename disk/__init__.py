"""What every room needs of the file system: files that are whole or absent, and what to do when the system refuses."""
