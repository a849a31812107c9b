"""Evaluation: the predictions of models, and the metrics of predictions."""
