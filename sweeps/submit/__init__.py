"""A sweep sent to a Ray cluster: what is sent, the job, and following it."""
