"""The text of a conversation: messages, its template, tokens, labels."""
