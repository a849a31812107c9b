#!/usr/bin/env bash
# Let this machine join the Ray cluster of cluster.env. What is said behind the name goes to
# `ray start`, as with start_head.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cluster.env
source "${CLUSTER_ENV:-$here/cluster.env}"

head=$(getent ahostsv4 "$HEAD" | awk '{print $1; exit}') || true
if [ -z "$head" ]; then
  echo "nobody knows where $HEAD is: say the head's name or address in cluster.env" >&2
  exit 2
fi
if [ "$RAY_AUTH_MODE" = token ] && [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
  echo "$RAY_AUTH_TOKEN_PATH is not here: is the home mounted, and the head started?" >&2
  exit 2
fi
# Of several addresses of this machine the one by which it reaches the head.
address=$(ip -4 route get "$head" | sed -n 's/.* src \([^ ]*\).*/\1/p')

"$VENV/bin/python" -m carft_sweep.sweeps.engines.ray_tokens || exit 2 # an older Ray would ignore the token
# A name that nobody can foresee: in /tmp others could make a known one first. Ray opens its own
# folder to everybody, so it lies in this one.
scratch=$(mktemp -d "$RAY_SCRATCH/ray-XXXXXX")
exec "$VENV/bin/ray" start --address "$head:$GCS_PORT" --node-ip-address "$address" \
  --temp-dir "$scratch/r" "${OF_EVERY_NODE[@]}" "$@"
