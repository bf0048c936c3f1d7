"""MobileVLM V2 and LLaVA checkpoints in the layout of the original code."""
