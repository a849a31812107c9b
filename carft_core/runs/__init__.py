"""A run's folder, its result, and what makes it the same as another."""
