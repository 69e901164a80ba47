"""`vtprune bench-kernels`: every operator beside its reference and the floor of the device."""
