"""What a run decides about the attention loss before its first step."""
