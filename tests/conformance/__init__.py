"""Conformance: other libraries' own test cases, expressed in the language, and compared value by value."""
