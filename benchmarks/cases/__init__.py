"""What the benchmarks measure: inputs, records and stores; and what measures them."""
