"""The run side, tested with programs made by hand."""
