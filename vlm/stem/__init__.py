"""The stem: the few tensors of a teacher that give attention and vision targets."""
