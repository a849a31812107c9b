#!/usr/bin/env bash
# Copy everything that sweeps keep into a new folder, while they run:
#
#   docker/backup.sh [--compose] FOLDER
#
# The order is what makes the copy whole. What refers to something is copied before it, so that
# nothing in the copy names what is not there: ledgers before the runs that they name, the notes of
# what MLflow was sent before MLflow. See docs/server.md#back-up-and-restore; the variables are in places.sh.
set -euo pipefail
umask 077

source "$(dirname "${BASH_SOURCE[0]}")/places.sh"

[ ! -e "$1" ] || fail "$1 is there already: name a new folder"
mkdir -p -- "$(dirname -- "$1")"
new=$1.incomplete
[ ! -e "$new" ] || fail "$new is of a backup that was not finished: remove it"
mkdir -- "$new"

dump() { # name in the backup
  [ "${databases[$1]}" ] || return 0
  "${in_postgres[@]}" pg_dump --format=custom --dbname="${databases[$1]}" > "$new/$1.dump"
}

# A copy of an SQLite file as one moment saw it, whoever writes to it meanwhile.
dump_sqlite() { # file in the home
  [ -z "$compose" ] && [ -e "$CARFT_HOME/$1" ] || return 0
  "${PYTHON:-python3}" - "$CARFT_HOME/$1" "$new/${1##*/}" <<'PYTHON'
import sqlite3, sys
source, copy = (sqlite3.connect(name, timeout=60) for name in sys.argv[1:])
source.backup(copy)
copy.close()
PYTHON
}

# Files of the home in the order in which they are named. Tar says 1 when one has changed or gone
# while it was read, which is no harm here: each is replaced as a whole, or only grows.
pack() { # archive, names or patterns
  local archive=$new/$1 code=0
  shift
  # shellcheck disable=SC2016 # expanded there, not here
  "${at_home[@]}" bash -c '
    cd -- "$1" || exit 2
    shift
    shopt -s nullglob extglob
    names=()
    for pattern in "$@"; do
      for name in $pattern; do [ ! -e "$name" ] || names+=("$name"); done
    done
    [ ${#names[@]} -gt 0 ] || exec tar --create --files-from=/dev/null
    exec tar --create --sort=name "${names[@]}"
  ' bash "$CARFT_HOME" "$@" > "$archive" || code=$?
  [ "$code" -le 1 ] || fail "the home $CARFT_HOME cannot be copied"
}

"${at_home[@]}" test -d "$CARFT_HOME" || fail "there is no home $CARFT_HOME"

dump optuna
dump_sqlite optuna.db
# ui/ has the key that signs sessions, and a password where it was made up: only its users are copied.
pack home.tar .gitignore '!(cache|mlartifacts|sweeps|runs|ui|*.lock|*.db|*.db-*)' sweeps runs
dump mlflow
dump mlflow_auth
dump_sqlite mlflow.db
dump_sqlite ui/users.db
pack mlartifacts.tar mlartifacts
[ -z "${CARFT_BUCKET:-}" ] || "${at_store[@]}" pack "$CARFT_BUCKET" > "$new/bucket.tar"

if [ "${MLFLOW_DB:-}" ] && [ -z "${CARFT_BUCKET:-}" ]; then
  echo "not in it: artifacts that MLflow's server keeps outside of the home, since CARFT_BUCKET is not set" >&2
fi

(cd -- "$new" && sha256sum -- * > .sums && mv .sums SHA256SUMS && sync -- *)
mv -- "$new" "$1"
du -sh -- "$1"
