#!/usr/bin/env bash
# Sets up if need be, then runs all tests that this machine can run.
#   bash tests/run.sh           without those marked slow
#   bash tests/run.sh --slow    with them
#   bash tests/run.sh ARGS...   further arguments go to pytest, such as -n 0 to run all tests in one process
set -euo pipefail

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

# Print the number of pytest's worker processes, up to four. There is one more than cores, because tests wait for other
# processes: with two workers, two cores were idle for about a fifth of the time. Each needs 8 GB of memory: a real run
# takes 3.5 GB, and its worker's own modules and models take the rest. 0 means that pytest runs all tests itself. It does
# if there is a GPU, of which a run takes most.
num_workers() {
    if has_gpu; then echo 0; return; fi
    local num=4 cores memory
    cores=$(nproc)
    memory=$(awk '/^MemTotal/ { print int($2 / 8000000) }' /proc/meminfo)
    for limit in "$((cores + 1))" "$memory"; do num=$((limit < num ? limit : num)); done
    echo $((num > 1 ? num : 0))
}

install_browser() {
    command -v chromium-headless-shell >/dev/null ||
        { apt-get update && apt-get install -y --no-install-recommends chromium-headless-shell fonts-dejavu-core; } \
            >.setup.apt.log 2>&1 ||
        echo "Chromium could not be installed, see .setup.apt.log: its tests are skipped" >&2
}

# shellcheck disable=SC2329  # set_up calls it by its name.
install_optional() {
    .venv/bin/python -m pip install -q -c constraints-cpu.txt -r requirements-eval.txt >.setup.eval.log 2>&1 ||
        echo "lm-evaluation-harness could not be installed, see .setup.eval.log: its tests are skipped" >&2
    .venv/bin/python -m pip install -q --no-deps -r requirements-inspect.txt >.setup.inspect.log 2>&1 ||
        echo "inspect_ai could not be installed, see .setup.inspect.log: its tests are skipped" >&2
    .venv/bin/python -m pip install -q --no-deps -r requirements-verifiers.txt >.setup.verifiers.log 2>&1 ||
        echo "verifiers could not be installed, see .setup.verifiers.log: its tests are skipped" >&2
    .venv/bin/python -m pip install -q --no-deps --target .venv/trl -r requirements-trl.txt >.setup.trl.log 2>&1 ||
        echo "TRL could not be installed, see .setup.trl.log: its tests are skipped" >&2
}

script=$(realpath "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$script")")
source "$root/utils/setup.sh"
if wants_help "$@"; then
    usage_of "$script"
    exit
fi
cd "$root"
# Users choose whether to have a browser, lm-evaluation-harness, inspect_ai, verifiers and TRL. In CI all are installed: its
# machine is ours.
if [ "${CI:-}" = true ]; then
    install_browser &
    set_up "$root" --tests install_optional
    wait
else
    set_up "$root" --tests
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Types are checked beside the tests, which often wait for processes. The CUDA stack's torch declares other types.
if ! has_gpu; then .venv/bin/mypy & mypy=$!; fi
# Eight Reasoning Gym datasets make other problems under another hash seed.
code=0
PYTHONHASHSEED=0 .venv/bin/python -m pytest -n "$(num_workers)" --dist loadfile --no-loadscope-reorder "$@" || code=$?
if [ -n "${mypy:-}" ] && ! wait "$mypy"; then
    echo "error: mypy found errors, see above" >&2
    code=1
fi
exit "$code"
