"""Offline distillation of vision-language models from cached targets."""
