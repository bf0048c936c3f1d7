"""A model of transformers behind the interface of a family."""
