"""MobileVLM: vision tower, projector, decoder."""

from alignkd.vlm.torchvision_import import make_torchvision_importable

make_torchvision_importable()
