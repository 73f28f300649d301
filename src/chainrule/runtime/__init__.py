"""The run side: the cache, loading, memory, the tape and its threads, one step. Imports neither sympy nor Numba."""
