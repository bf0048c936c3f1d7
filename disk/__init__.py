"""The file system for all packages: files that are whole or absent, and the next step after an error of the system."""
