"""A sweep sent to a Ray cluster: what is packed, what the job is told, and how it is followed."""
