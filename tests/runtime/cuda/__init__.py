"""The run side of the CUDA target, without a GPU: on devices and libraries that are Python."""
