"""What measures the product, and is no part of it."""
