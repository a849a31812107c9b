#!/usr/bin/env bash
# Bring MLflow's tables to the version that is installed; does nothing when they are there. Those of
# its users the server brings there itself, when it starts. Older servers do not understand newer
# tables: back up before another version.
set -euo pipefail

exec mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"
