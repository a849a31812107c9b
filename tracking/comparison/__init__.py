"""From runs to a verdict; knows no MLflow, no chart and no terminal."""
