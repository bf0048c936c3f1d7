"""The attention term of the objective: which layers and heads are compared, and its sums over a batch."""
