#!/usr/bin/env bash
# Runs a config on a TPU VM of one host. Creates the VM if it does not exist.
#
#   launch/tpu_vm.sh [--dry_run] NAME ZONE TYPE --config=configs/... [flags]
#
# e.g. launch/tpu_vm.sh exprl-4b us-east5-b v6e-8 \
#        --config=configs/qwen3_4b.py:exprl_process_fast
#
# Copies HEAD (not uncommitted changes), installs it and runs it in tmux, so that
# a lost connection does not stop it. A second call resumes the run. --dry_run
# prints the commands.
set -euo pipefail

run() { if [[ $dry_run ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }

dry_run=
if [[ ${1:-} == --dry_run ]]; then dry_run=1; shift; fi
if [[ $# -lt 4 || $4 != --config=* ]]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1 zone=$2 type=$3
shift 3

case $type in
  v5litepod-[148]) version=v2-alpha-tpuv5-lite ;;
  v5p-8) version=v2-alpha-tpuv5 ;;
  v6e-[148]) version=v2-alpha-tpuv6e ;;
  *) echo "error: $type: one of v5litepod-{1,4,8}, v5p-8, v6e-{1,4,8}" >&2
     exit 2 ;;
esac

tpu=(gcloud compute tpus tpu-vm)
if [[ $dry_run ]] || ! "${tpu[@]}" describe "$name" --zone="$zone" \
    >/dev/null 2>&1; then
  run "${tpu[@]}" create "$name" --zone="$zone" --accelerator-type="$type" \
    --version="$version"
fi
flags=$(printf '%q ' "$@")
remote="set -e
mkdir -p exprl_jax && tar -xzf exprl_jax.tar.gz -C exprl_jax
cd exprl_jax
python3 -m pip install -q --user uv  # the image's Python is too old
~/.local/bin/uv venv -q --allow-existing --python 3.12 ~/venv
~/.local/bin/uv pip install -q --python ~/venv -e '.[tpu]'
export JAX_COMPILATION_CACHE_DIR=\$HOME/compilation_cache
tmux new-session -A -s run \
  \"~/venv/bin/python -m exprl_jax.main $flags--workdir=\$HOME/runs/$name\""
archive=$(mktemp -u).tar.gz
run git archive --format=tar.gz -o "$archive" HEAD
run "${tpu[@]}" scp "$archive" "$name:exprl_jax.tar.gz" --zone="$zone"
run "${tpu[@]}" ssh "$name" --zone="$zone" --command="$remote" -- -t
