"""Products with sparse weights on the CPU: layouts, compiled kernels, and the same in plain torch."""
