"""Tokens and pixels of any checkpoint of transformers, by its own processor and chat template."""
