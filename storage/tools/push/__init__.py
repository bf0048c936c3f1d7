"""Publishing a store in a data set of the Hugging Face hub."""
