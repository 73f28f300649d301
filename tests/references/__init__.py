"""The same models in PyTorch, for comparisons: `twins` are the modules, `weights` gives them our parameters and draws,
`training` runs a recipe with one of them; ``python -m tests.references NAME`` prints what that comes to.
"""
