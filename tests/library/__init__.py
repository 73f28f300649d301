"""The library's functions, each against PyTorch: rows of tables, and the laws that hold for every row."""
