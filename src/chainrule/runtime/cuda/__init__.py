"""Programs on an NVIDIA GPU: a step is one CUDA graph, and what it reads and writes lies on the device."""
