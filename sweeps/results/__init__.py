"""From run folders to comparisons, reports, MLflow and exported models."""
