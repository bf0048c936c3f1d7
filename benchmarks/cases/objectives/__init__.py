"""One module per objective: evaluates a golden case by the functions of the product."""
