"""The synthetic data set of the demo: scenes of handwritten digits, questions, tokenizer."""
