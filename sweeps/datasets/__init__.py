"""Data sets before any run: what is expected where, what is there, what can be read."""
