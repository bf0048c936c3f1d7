"""The stem: the few tensors of a teacher that give attention and vision targets."""

from alignkd.vlm.torchvision_import import make_torchvision_importable

make_torchvision_importable()
