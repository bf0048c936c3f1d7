"""What a model computes for one record of a store: attention from the teacher's stem, a student's own attention and
probabilities. Imports torch; what shows records imports it late, by its name."""

from alignkd.vlm.torchvision_import import make_torchvision_importable

make_torchvision_importable()
