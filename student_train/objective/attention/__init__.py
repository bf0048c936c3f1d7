"""The attention term of the objective: which layers and heads are compared, and the sums of a batch."""
