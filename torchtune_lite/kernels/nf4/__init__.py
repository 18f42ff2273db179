"""NF4, the 4-bit format of QLoRA, on plain tensors: codec, products, and loops for CPU and GPU."""
