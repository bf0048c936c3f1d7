"""The commands of `alignkd shards`, one file for one or two of them; `pipeline.shards_cli` puts them together."""
