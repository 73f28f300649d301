"""The nouns of the compiler: expressions, formulas, graphs, programs. Imports sympy and networkx."""
