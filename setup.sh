#!/usr/bin/env bash
# Parley's installer: everything goes into .venv beside this file; nothing needs root, nothing is asked.
#
#   ./setup.sh          install or bring up to date (seconds when nothing has changed)
#   ./setup.sh serve    the same, then start the server
#   ./setup.sh test     the same, then run the checks and the whole test-suite; further words go to pytest
#
# PYTHON=/path/to/python chooses the interpreter; CMAKE_ARGS has llama.cpp built with it (CUDA: CMAKE_ARGS=-DGGML_CUDA=on).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
readonly LOG=.venv/setup.log

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }

# The command that installs Debian, Fedora, Arch, SUSE, Alpine or macOS packages; arguments: a name for each family.
install_command() {  # debian fedora arch suse alpine macos
    if command -v apt-get >/dev/null; then echo "sudo apt-get install -y $1"
    elif command -v dnf >/dev/null; then echo "sudo dnf install -y $2"
    elif command -v pacman >/dev/null; then echo "sudo pacman -S --needed $3"
    elif command -v zypper >/dev/null; then echo "sudo zypper install -y $4"
    elif command -v apk >/dev/null; then echo "sudo apk add $5"
    else echo "brew install $6"; fi
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python of 3.10 or newer"
        echo "$PYTHON"; return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then command -v "$candidate"; return; fi
    done
    die "Python 3.10 or newer is missing ($(python3 --version 2>&1 || true)). Get it with:" \
        "$(install_command python3 python3 python python3 python3 python)"
}

check_tools() {
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        die "a C++ compiler is missing. Get it with:" \
            "$(install_command build-essential gcc-c++ base-devel gcc-c++ build-base gcc)"
    command -v make >/dev/null || command -v ninja >/dev/null ||
        die "make is missing. Get it with: $(install_command make make make make make make)"
    command -v cmake >/dev/null || die "cmake is missing. Get it with: $(install_command cmake cmake cmake cmake cmake cmake)"
}

make_venv() {
    local python=$1
    if [ -x .venv/bin/python ] && new_enough .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; then
        return
    fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv >/dev/null 2>&1 ||
        die "$python cannot make a virtual environment. Get the module with:" \
            "$(install_command "$(basename "$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')")-venv" \
                python3-pip python-pip python3-venv py3-pip python)"
}

# Run a command with its output in the log; show every few seconds how far it is, and the log's end when it fails.
with_progress() {
    local what=$1 pid started=$SECONDS step="" now last=-100
    shift
    "$@" >>"$LOG" 2>&1 &
    pid=$!
    trap 'kill "$pid" 2>/dev/null' EXIT
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.5
        if [ $((SECONDS - started - last)) -ge 10 ] && [ $((SECONDS - started)) -ge 5 ]; then
            last=$((SECONDS - started))
            now=$(tail -c 20000 "$LOG" | grep -oE '\[ *[0-9]+/[0-9]+\]' | tail -n 1 || true)
            step=${now:-$step}
            say "$what ... ${last} s $step"
        fi
    done
    trap - EXIT
    if ! wait "$pid"; then
        tail -n 15 "$LOG" >&2
        die "$what failed; the whole log is in $LOG"
    fi
}

PIP=(.venv/bin/python -m pip install -v --disable-pip-version-check --no-input --progress-bar off -c constraints.txt)

wants_build() { [ -n "${CMAKE_ARGS:-}" ] && [ "$(cat .venv/built-with 2>/dev/null)" != "$CMAKE_ARGS" ]; }

# pip takes the llama.cpp that is installed, or one from its cache, whatever CMAKE_ARGS it was built with.
build_llama() {
    say "llama.cpp is compiled with CMAKE_ARGS=$CMAKE_ARGS: 4 minutes or more, once"
    with_progress "compiling llama.cpp" "${PIP[@]}" --no-cache-dir --force-reinstall --no-deps \
        "$(grep '^llama-cpp-python' requirements.txt)"
    echo "$CMAKE_ARGS" >.venv/built-with
}

fingerprint() { cat "$@" | cksum | tr -d ' '; }

install_packages() {  # stamp, requirement files
    local stamp=.venv/$1 print
    shift
    print="$(fingerprint constraints.txt "$@") $(.venv/bin/python --version)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$print" ]; then return; fi
    local arguments=() file
    for file in "$@"; do arguments+=(-r "$file"); done
    if ! [ -e .venv/built-with ] && ! .venv/bin/python -c 'import llama_cpp' 2>/dev/null; then
        say "llama.cpp is compiled for this machine's processor: 4 to 8 minutes on two cores, once"
    fi
    with_progress "installing packages" "${PIP[@]}" "${arguments[@]}"
    echo "$print" >"$stamp"
}

# OpenAI's client for Node, which a test drives; without Node, npm or its registry that test is skipped.
install_node_client() {
    local stamp=.venv/installed-node folder=tests/clients/node print
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then return; fi
    print="$(fingerprint "$folder/package-lock.json") $(node --version)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$print" ] && [ -d "$folder/node_modules" ]; then return; fi
    if (cd "$folder" && npm ci) >>"$LOG" 2>&1; then echo "$print" >"$stamp"
    else say "npm could not install OpenAI's client for Node: its test is skipped ($LOG says why)"; fi
}

# A program that tests start for themselves, from Debian's package where that can be had; without it they are skipped.
# Arguments: what it is, the program, then the names of its package.
install_for_tests() {
    local what=$1 program=$2
    shift 2
    if command -v "$program" >/dev/null; then return; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # RUNLEVEL=1: nothing is started as a service
        if (apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
                apt-get install -y --no-install-recommends "$1") >>"$LOG" 2>&1; then return; fi
    fi
    say "there is no $program: the tests of $what are skipped. Get it with: $(install_command "$@")"
}

# llama.cpp's AMX kernels crash on quantised weights (ggml-org/llama.cpp#20824): it is built without them.
build_without_amx() {
    local flags=(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16) compiler
    compiler=$(command -v c++ || command -v g++ || command -v clang++) || return 0
    if [ "$(uname -m)" = x86_64 ] && "$compiler" "${flags[@]}" -E -x c++ /dev/null >/dev/null 2>&1; then
        export CFLAGS="${CFLAGS:-} ${flags[*]}" CXXFLAGS="${CXXFLAGS:-} ${flags[*]}"
    fi
}

install() {  # "dev" for the test packages too
    local python
    python=$(find_python)
    if wants_build || [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import llama_cpp' 2>/dev/null; then
        check_tools
    fi
    mkdir -p .venv data models
    make_venv "$python"
    : >"$LOG"
    build_without_amx
    if wants_build; then build_llama; fi
    install_packages installed requirements.txt
    if [ "${1:-}" = dev ]; then
        install_packages installed-dev requirements.txt requirements-dev.txt
        install_node_client
        install_for_tests "the shared stores" redis-server redis-server redis redis redis redis redis
        install_for_tests "the page" chromium chromium chromium chromium chromium chromium chromium
    fi
}

run_tests() {
    .venv/bin/ruff check .
    .venv/bin/mypy
    exec .venv/bin/python -m pytest "$@"
}

case "${1:-}" in
    "") install; say "ready: .venv/bin/python main.py starts the server" ;;
    serve) install; shift; exec .venv/bin/python main.py serve "$@" ;;
    test) install dev; shift; run_tests "$@" ;;
    -h|--help|help) usage ;;
    *) usage >&2; die "unknown word '$1'" ;;
esac
