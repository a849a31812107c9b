# How backup.sh and restore.sh are called, and where they find what they copy; both source it, and
# have the folder as their one argument afterwards.
#
#   CARFT_HOME                   the home
#   OPTUNA_DB                    Optuna's database on PostgreSQL; unset: the home has it
#   MLFLOW_DB, MLFLOW_AUTH_DB    those of MLflow's server, and of its users; unset: no such server
#   CARFT_BUCKET                 the bucket of artifacts; unset: none, or copied by other means
#
# libpq's variables (PGHOST, PGUSER, PGPASSFILE, ...) say where PostgreSQL is and who asks, the
# variables of boto3 where the store is. A password is never an argument.
# With --compose all of it is what compose.yaml runs, and each command runs in a container there.

compose=
[ "${1:-}" != --compose ] || { compose=yes; shift; }
[ $# -eq 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "$compose" ]; then
  CARFT_HOME=/carft CARFT_BUCKET=${CARFT_BUCKET-mlflow}
  OPTUNA_DB=${OPTUNA_DB-optuna} MLFLOW_DB=${MLFLOW_DB-mlflow}
  MLFLOW_AUTH_DB=${MLFLOW_AUTH_DB-mlflow_auth}
  container=(docker compose)
  [ "${COMPOSE_FILE:-}" ] || container+=(--file "$here/compose.yaml")
  in_postgres=("${container[@]}" exec -T --env PGUSER=postgres postgres)
  at_home=("${container[@]}" run --rm -T --no-deps --entrypoint env carft)
  at_store=("${container[@]}" run --rm -T --no-deps mlflow python /opt/carft/server/bucket_tar.py)
else
  in_postgres=(env)
  at_home=(env)
  at_store=("${PYTHON:-python3}" "$here/server/bucket_tar.py")
fi

fail() {
  echo "$1" >&2
  exit 2
}

# What a backup calls a database, and what it is called on the server.
declare -A databases=(
  [optuna]=${OPTUNA_DB:-} [mlflow]=${MLFLOW_DB:-} [mlflow_auth]=${MLFLOW_AUTH_DB:-}
)

[ "${CARFT_HOME:-}" ] || fail "CARFT_HOME is not set: which home? (--compose: that of compose.yaml)"
