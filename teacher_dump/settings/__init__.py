"""The sections of the configuration that phase 1 reads: teacher, store and its parts."""
