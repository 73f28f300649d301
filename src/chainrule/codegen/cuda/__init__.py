"""The GPU's code: programs as kernels for NVIDIA's architectures."""
