"""Conversation files and their entries."""
