#!/usr/bin/env bash
# Start a Ray cluster's head on this machine; it runs sweeps too. What is said behind the name goes
# to `ray start`: --num-gpus 0 keeps runs off it, --block stays in the foreground, as systemd wants.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cluster.env
source "${CLUSTER_ENV:-$here/cluster.env}"

address=$(getent ahostsv4 "$HEAD" | awk '{print $1; exit}') || true
case $HEAD/$address in
  127.* | localhost/*) ;; # a cluster that stays on this machine
  */127.*)
    echo "$HEAD is $address here, where no other machine reaches it: say the head's address in cluster.env" >&2
    exit 2
    ;;
  */)
    echo "nobody knows where $HEAD is: say the head's name or address in cluster.env" >&2
    exit 2
    ;;
esac

if [ ${#RAY_SCRATCH} -gt 26 ]; then # Ray would start without its dashboard, and not say so
  echo "RAY_SCRATCH=$RAY_SCRATCH is too long for the names of Ray's sockets: 26 characters at most" >&2
  exit 2
fi

if (: <>"/dev/tcp/$address/$GCS_PORT") 2>/dev/null; then
  echo "something listens at $address:$GCS_PORT already: is a head up? '$VENV/bin/ray stop' ends every Ray that you run on this machine" >&2
  exit 2
fi

(umask 077 && mkdir -p "$CARFT_HOME") # where there is none; a shared one is made by hand
if [ "$RAY_AUTH_MODE" = token ] && [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
  (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
fi

"$VENV/bin/python" -m carft_sweep.sweeps.engines.ray_tokens || exit 2 # an older Ray would ignore the token
# A name that nobody can foresee: in /tmp others could make a known one first. Ray opens its own
# folder to everybody, so it lies in this one.
scratch=$(mktemp -d "$RAY_SCRATCH/ray-XXXXXX")
exec "$VENV/bin/ray" start --head --node-ip-address "$address" --port "$GCS_PORT" \
  --dashboard-host 127.0.0.1 --dashboard-port "$DASHBOARD_PORT" \
  --ray-client-server-port "$CLIENT_PORT" --temp-dir "$scratch/r" "${OF_EVERY_NODE[@]}" "$@"
