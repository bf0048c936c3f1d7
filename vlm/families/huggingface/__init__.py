"""Any `AutoModelForImageTextToText` checkpoint of transformers."""

from alignkd.vlm.torchvision_import import make_torchvision_importable

make_torchvision_importable()
