"""A dump by workers that an engine for clusters starts, places and replaces."""
