"""Chainrule: write a network as mathematics, see its chain rule, train it with fused kernels."""
