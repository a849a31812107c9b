"""Data sets before any run: what is expected where, what is there, and everything slow done once."""
