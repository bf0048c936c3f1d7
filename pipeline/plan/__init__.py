"""`alignkd plan`: estimates of disk, memory and time before anything runs."""
