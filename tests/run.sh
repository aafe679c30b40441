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
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Eight Reasoning Gym datasets make other problems under another hash seed.
PYTHONHASHSEED=0 exec .venv/bin/python -m pytest "$@"
