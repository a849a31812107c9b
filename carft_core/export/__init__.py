"""A tuned model as a folder of its own, and a predictor of it."""
