"""The loss on pairs of a chosen and a rejected answer."""
