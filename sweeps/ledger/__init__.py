"""What a sweep did, on disk: its trials, its runs, who drives it."""
