"""Tests of the GPU's code, on machines without one: what the compilers make of it, and what it computes."""
