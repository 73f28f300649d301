"""Chainrule beside its peers on the same work: ``python -m tests.benchmarks --help``.

rows.py says what is measured, peers*.py how each peer does it best, measure.py how time is taken.
"""
