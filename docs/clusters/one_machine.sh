#!/usr/bin/env bash
# A sweep on all GPUs of this machine that goes on when you log out, and begins again where it was
# when its process is killed.
#
#   one_machine.sh kl_weight
#   one_machine.sh my.yaml --set resources.gpus=0.5 --set seeds=5
#
# What follows the script's name are the words of `carft-sweep run`.
set -euo pipefail

# Where carft-sweep is installed.
VENV=${VENV:-$PWD/.venv}
# The home, on a local disk.
export CARFT_HOME=${CARFT_HOME:-$PWD/.carft}
# What keeps it: `systemd` (a unit of yours), `tmux` (a terminal to come back to), or `setsid` (a
# process in the background). Left out: the first of them that there is.
KEEP=${KEEP:-}
# The name of the unit, of tmux's session, and of the log in the home.
NAME=${NAME:-carft-sweep}
# How often it begins again after it was killed, and how many seconds later.
RESTARTS=${RESTARTS:-20}
PAUSE=${PAUSE:-10}

sweep() { "$VENV/bin/carft-sweep" run "$@"; }

go_on() { # until it ends by itself: codes above 128 are of a process that was killed
  local code=0 begun
  for begun in $(seq 0 "$RESTARTS"); do
    [ "$begun" = 0 ] || sleep "$PAUSE"
    code=0
    sweep "$@" || code=$?
    [ "$code" -gt 128 ] || break
    echo "one_machine.sh: the sweep was killed (exit code $code)" >&2
  done
  return "$code"
}

first_there() {
  # A user's units end with the last login, unless they may linger.
  if [ "$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null)" = yes ] &&
    systemctl --user is-system-running >/dev/null 2>&1; then
    echo systemd
  elif command -v tmux >/dev/null; then
    echo tmux
  else
    echo setsid
  fi
}

if [ $# = 0 ]; then
  echo "one_machine.sh: say which sweep: a file, or the name of a recipe" >&2
  exit 2
fi
if [ "$1" = --go-on ]; then
  shift
  go_on "$@"
  exit
fi

export VENV NAME RESTARTS PAUSE
(umask 077 && mkdir -p "$CARFT_HOME") # where there is none; a shared one is made by hand
log=$CARFT_HOME/$NAME.log
here=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")

case ${KEEP:-$(first_there)} in
  systemd)
    kept=()
    for name in PATH CUDA_VISIBLE_DEVICES $(compgen -e | grep -E '^(CARFT|MLFLOW|HF|RAY)_' || true); do
      [ -z "${!name:-}" ] || kept+=("--setenv=$name") # the value is taken from here, and not shown
    done
    systemd-run --user --unit="$NAME" --collect --same-dir "${kept[@]}" \
      --property=Restart=on-abnormal --property=RestartSec="$PAUSE" \
      --property=KillMode=mixed --property=TimeoutStopSec=600 \
      "$VENV/bin/carft-sweep" run "$@"
    echo "It runs. To look: journalctl --user --unit $NAME --follow"
    ;;
  tmux)
    if [ "$(tmux -L "$NAME" list-panes -t "$NAME" -F '#{pane_dead}' 2>/dev/null)" = 1 ]; then
      tmux -L "$NAME" kill-server # the end of an earlier sweep stands there
    fi
    # A server of its own has the environment of this shell, not that of an older server.
    tmux -L "$NAME" new-session -d -s "$NAME" "$here" --go-on "$@" \; set-option remain-on-exit on
    echo "It runs. To look: tmux -L $NAME attach; Ctrl-B D leaves it"
    ;;
  setsid)
    setsid "$here" --go-on "$@" </dev/null >>"$log" 2>&1 &
    echo "It runs. To look: tail -f $log"
    ;;
  *)
    echo "KEEP is systemd, tmux or setsid, got $KEEP" >&2
    exit 2
    ;;
esac
echo "From any terminal: $VENV/bin/carft-sweep watch SWEEP, or stop SWEEP; CARFT_HOME is $CARFT_HOME"
