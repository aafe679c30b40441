#!/usr/bin/env bash
# Sets up on first use, then trains.
#   bash train.sh               the quickstart: train, export and evaluate the embedded model, print a table
#   bash train.sh setup         only set up: the environment in .venv and the embedded model
#   bash train.sh ARGS...       python train_grpo.py ARGS...
# Exit code 75 means that SIGTERM or SIGHUP stopped it. The same command continues, so a scheduler may requeue it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/utils/setup.sh"
if wants_help "$@"; then
    usage_of "${BASH_SOURCE[0]}"
    # The help needs no package, so any usable Python can print it.
    python=$root/.venv/bin/python
    if [ -x "$python" ] || python=$(find_python 2>/dev/null); then
        echo
        exec "$python" "$root/train_grpo.py" --help
    fi
    exit
fi
set_up "$root"

case "${1-}" in
    "") exec "$root/.venv/bin/python" -u "$root/utils/quickstart.py" ;;
    setup) echo "ready: source $root/.venv/bin/activate" ;;
    *) exec "$root/.venv/bin/python" -u "$root/train_grpo.py" "$@" ;;
esac
