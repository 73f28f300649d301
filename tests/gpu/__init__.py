"""What only a GPU can show: that its kernels are right on it, and how fast they are. ``python -m tests.gpu``."""
