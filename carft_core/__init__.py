"""Robust fine-tuning of CLIP: one training loop, one evaluation, many algorithms."""
