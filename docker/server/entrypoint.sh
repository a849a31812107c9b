#!/usr/bin/env bash
# Each secret may be given as NAME_FILE=/path: NAME is set to what the file holds, then the command
# runs. MLflow takes secrets from its environment only; so none is in `docker inspect`.
set -euo pipefail

for name in PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
  MLFLOW_TRACKING_PASSWORD; do
  file_name=${name}_FILE
  file=${!file_name:-}
  [ -n "$file" ] || continue
  if [ -n "${!name:-}" ]; then
    echo "$name and $file_name are both set: which is meant?" >&2
    exit 2
  fi
  if ! secret=$(cat -- "$file" 2>/dev/null) || [ -z "$secret" ]; then
    echo "$file_name: $file cannot be read, or is empty" >&2
    exit 2
  fi
  export "$name=$secret"
  unset "$file_name" secret
done

exec "$@"
