"""The stem of models of transformers: their own class, cut off after the first layer that has attention."""
