"""The formulas of the attention loss: forms, weights of rows, and their fusion with the attention itself."""
