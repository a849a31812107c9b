"""What is kept of every run, and how it is compared and shown."""
