"""The training loop and what it computes with."""
