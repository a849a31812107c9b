"""What a model predicts, and what is measured of it."""
