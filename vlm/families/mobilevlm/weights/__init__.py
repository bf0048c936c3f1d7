"""Checkpoint files of MobileVLM: reading and writing."""

from alignkd.vlm.torchvision_import import make_torchvision_importable

make_torchvision_importable()
