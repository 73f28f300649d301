"""The code generator: its laws, its text, its speed."""
