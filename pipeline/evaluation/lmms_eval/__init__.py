"""Plug-in for lmms-eval: `python -m lmms_eval --model alignkd --model_args pretrained=DIR`; it is no dependency."""
