#!/usr/bin/env bash
# Put what backup.sh has copied into empty places; nothing that is there is overwritten:
#
#   docker/restore.sh [--compose] FOLDER
#
# The databases must exist, each with its owner, and the bucket. No driver and no MLflow server may
# run. See docs/server.md#back-up-and-restore; the variables are in places.sh.
set -euo pipefail
umask 077

source "$(dirname "${BASH_SOURCE[0]}")/places.sh"

ask() { # database, query
  "${in_postgres[@]}" psql --no-psqlrc --tuples-only --no-align --dbname="$1" --command="$2"
}

(cd -- "$1" 2> /dev/null && sha256sum --check --quiet SHA256SUMS) >&2 || fail "$1 is no whole backup"
from=$(cd -- "$1" && pwd)

# Everything is looked at before anything is written.
for role in "${!databases[@]}"; do
  name=${databases[$role]}
  if [ -z "$name" ]; then
    [ ! -e "$from/$role.dump" ] || fail "$from has the database $role: name one (see places.sh)"
    continue
  fi
  [ -e "$from/$role.dump" ] || fail "$from has no database $role"
  tables=$(ask "$name" "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") ||
    fail "the database $name cannot be used: make it, with its owner"
  [ "$tables" = 0 ] || fail "the database $name is not empty: drop it, and make it anew"
done
# shellcheck disable=SC2016 # expanded there, not here
there=$("${at_home[@]}" bash -c '[ ! -d "$1" ] || ls -A -- "$1"' bash "$CARFT_HOME")
[ -z "$there" ] || fail "the home $CARFT_HOME is not empty: move it away"
if [ "${CARFT_BUCKET:-}" ]; then
  [ -e "$from/bucket.tar" ] || fail "$from has no bucket"
  "${at_store[@]}" empty "$CARFT_BUCKET" || exit 2
elif [ -e "$from/bucket.tar" ]; then
  fail "$from has a bucket: name one in CARFT_BUCKET"
fi

for role in "${!databases[@]}"; do
  name=${databases[$role]}
  [ "$name" ] || continue
  owner=$(ask "$name" \
    'SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()')
  "${in_postgres[@]}" pg_restore --dbname="$name" --no-owner --no-privileges --role="$owner" \
    --single-transaction --exit-on-error < "$from/$role.dump"
done

for archive in home mlartifacts; do
  # shellcheck disable=SC2016
  "${at_home[@]}" bash -c 'mkdir -p -- "$1" && exec tar --extract --directory="$1"' \
    bash "$CARFT_HOME" < "$from/$archive.tar"
done
for file in optuna.db mlflow.db ui/users.db; do
  [ -e "$from/${file##*/}" ] || continue
  mkdir -p -- "$(dirname -- "$CARFT_HOME/$file")"
  cp -- "$from/${file##*/}" "$CARFT_HOME/$file"
done
[ -z "${CARFT_BUCKET:-}" ] || "${at_store[@]}" unpack "$CARFT_BUCKET" < "$from/bucket.tar"
