"""How fast one mixture layer is: kernels, and other libraries' layers, beside each other on the same sizes."""
