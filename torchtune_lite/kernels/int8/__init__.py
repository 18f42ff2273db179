"""int8 weights, a scale for each row, on plain tensors: codec, products, and loops for the CPU."""
