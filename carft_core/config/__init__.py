"""What a run is asked for: its config, the types of its fields, registries, and the user's code."""
