"""What a sweep has to do: its runs, and what they cost."""
