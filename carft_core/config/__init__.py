"""The config of a run: its fields and their types, the registries, and the user's own code."""
