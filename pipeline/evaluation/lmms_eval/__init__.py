"""Plug-in for lmms-eval: `lmms_eval --model alignkd --model_args pretrained=DIR`; lmms-eval is not a dependency."""
