#!/usr/bin/env bash
# Sets up on first use, then trains.
#   bash train.sh               the main job: train, export and evaluate the embedded default model, print a table
#   bash train.sh setup         only set up: the environment in .venv and the embedded model
#   bash train.sh ARGS...       python train_grpo.py ARGS...
# Exit code 75: stopped by SIGTERM or SIGHUP; the same command continues, so a scheduler may requeue it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/utils/setup.sh"
set_up "$root"

case "${1-}" in
    "") exec "$root/.venv/bin/python" -u "$root/utils/quickstart.py" ;;
    setup) echo "ready: source $root/.venv/bin/activate" ;;
    *) exec "$root/.venv/bin/python" -u "$root/train_grpo.py" "$@" ;;
esac
