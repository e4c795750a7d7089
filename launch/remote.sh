#!/usr/bin/env bash
# On a TPU VM: installs a version of exprl_jax and supervises a run of it.
# launch/tpu_vm.py copies it to all workers and calls it there.
#
#   remote.sh start NAME VERSION [flags of exprl_jax.main]
#   remote.sh status|logs|stop NAME
#
# ~/exprl_jax/VERSION has the code and its own virtual environment: an update
# changes nothing under a run that lives. ~/runs/NAME has log (of all starts),
# exit_code (of the last one; absent while it runs), pid and command.
set -euo pipefail

action=$1 name=$2
shift 2
run=$HOME/runs/$name
mkdir -p "$run"

# The supervisor, and not what has its number since the host was restarted.
alive() {
  [[ -f $run/pid ]] && grep -qs supervise "/proc/$(cat "$run/pid")/cmdline"
}

install_version() {  # from ~/exprl_jax-VERSION.tar.gz
  local folder=$HOME/exprl_jax/$1
  if [[ ! -f $folder/.installed ]]; then
    mkdir -p "$folder"
    tar -xzf "$HOME/exprl_jax-$1.tar.gz" -C "$folder"
    cd "$folder"
    # The image's Python may be too old; uv brings one.
    python3 -m pip install -q --user uv
    python3 -m uv venv -q --allow-existing --python 3.12 venv
    python3 -m uv pip install -q --python venv -c constraints.txt -e '.[tpu]'
    touch .installed
  fi
}

# Starts the command until it ends for good: 42 (start me again), 1 (which the
# run itself turns into 3 at the third time) and signals are started again.
supervise() {
  local code=0 starts
  for ((starts = 1; starts <= 100; starts++)); do
    "$@" &
    echo $! >"$run/child"
    wait $! && code=0 || code=$?
    echo "$(date -u +%FT%TZ) exit code $code (start $starts)"
    [[ -f $run/stop ]] && break
    case $code in 0 | 2 | 3 | 4) break ;; esac
    sleep "${RESTART_DELAY:-10}"
    [[ -f $run/stop ]] && break
  done
  echo "$code" >"$run/exit_code"
  rm -f "$run/pid" "$run/child"
}

case $action in
start)
  version=$1
  shift
  if alive; then
    echo "error: run $name lives on $(hostname): stop it first" >&2
    exit 1
  fi
  install_version "$version"
  cd "$HOME/exprl_jax/$version"
  rm -f "$run/exit_code" "$run/stop"
  printf '%q ' "$@" >"$run/command"
  export PYTHONUNBUFFERED=1
  # A session of its own: it outlives this connection.
  export -f supervise
  # shellcheck disable=SC2016
  run=$run setsid nohup bash -c 'echo $$ >"$run/pid"; supervise "$@"' _ \
    venv/bin/python -m exprl_jax.main "$@" >>"$run/log" 2>&1 </dev/null &
  sleep 1
  echo "$(hostname): run $name is started, its log is ~/runs/$name/log"
  ;;
status)
  if alive; then
    echo "$(hostname): runs"
  else
    code=$(cat "$run/exit_code" 2>/dev/null || echo 'none: it never ended')
    echo "$(hostname): exit code $code"
  fi
  tail -n 3 "$run/log" 2>/dev/null || true
  ;;
logs) tail -n 200 -F "$run/log" ;;
stop)  # SIGTERM: the run saves its step
  touch "$run/stop"
  # Between two starts there is no child.
  if alive; then kill -TERM "$(cat "$run/child")" 2>/dev/null || true; fi
  while alive; do sleep 1; done
  echo "$(hostname): stopped, exit code $(cat "$run/exit_code" 2>/dev/null ||
    echo 'none: it never ended')"
  ;;
*)
  echo "error: $action: one of start, status, logs, stop" >&2
  exit 2
  ;;
esac
