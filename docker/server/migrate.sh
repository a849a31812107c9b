#!/usr/bin/env bash
# Bring the tables of MLflow and of its users to the version that is installed; does nothing when
# they are there. Older servers do not understand newer tables: back up before another version.
set -euo pipefail

python -m mlflow.server.auth db upgrade --url postgresql+psycopg:///mlflow_auth
exec mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
