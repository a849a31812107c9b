"""Where runs are recorded: the tracker, and MLflow behind it."""
