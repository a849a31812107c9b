"""The runs of a sweep, and how long they take."""
