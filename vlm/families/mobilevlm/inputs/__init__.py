"""Tokens and pixels of MobileVLM."""
