"""The commands of `alignkd shards`, one file for one or two of them; `commands/shards.py` groups them."""
