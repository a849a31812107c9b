"""Search spaces: distributions, and drawing points of them."""

RANDOM_TRIALS = {"tpe": 10, "gp": 10, "nsga2": 20}
"""Trials that a method draws at random before it looks at results; of nsga2 its first generation
(with Optuna's 50 most sweeps would have no second one)."""
