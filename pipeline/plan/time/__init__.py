"""Hours of both phases, from floating-point operations and the data sheets of devices."""
