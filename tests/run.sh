#!/usr/bin/env bash
# Sets up if need be, then runs all tests that this machine can run.
#   bash tests/run.sh           without those marked slow
#   bash tests/run.sh --slow    with them
#   bash tests/run.sh ARGS...   further arguments go to pytest
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/utils/setup.sh"
set_up "$root"
cd "$root"
# Tests that look at reports in a browser are skipped without one; a CI machine is ours to install it on.
if [ "${CI:-}" = true ] && ! command -v chromium-headless-shell >/dev/null; then
    { apt-get update && apt-get install -y --no-install-recommends chromium-headless-shell fonts-dejavu-core; } \
        >.setup.apt.log 2>&1 || echo "no Chromium could be installed, see .setup.apt.log: its tests are skipped" >&2
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Eight Reasoning Gym datasets make other problems under another hash seed.
PYTHONHASHSEED=0 exec .venv/bin/python -m pytest "$@"
