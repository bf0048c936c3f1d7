"""`alignkd dump` and `alignkd generate`: one worker of each, its status and its results."""
