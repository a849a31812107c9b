"""Measurements of the product, which are no part of it."""
