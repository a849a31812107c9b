"""Driving a sweep: which run is next, and what follows from how it ended."""
