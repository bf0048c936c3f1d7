"""The pages of `alignkd shards browse`, and the server that gives them to one user of this machine."""
