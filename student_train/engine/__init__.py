"""Weights, gradients and optimiser of a training: on one device in plain torch, or by DeepSpeed's ZeRO-2."""
