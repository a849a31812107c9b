"""A sweep file: read, checked, and turned into a `SweepSpec`."""
