#!/usr/bin/env bash
# Make .venv in the checkout and install TinyBERT-DS into it. Does nothing when that is done already.
#
#     bash launchers/install.sh [EXTRAS]        EXTRAS: of pyproject.toml, with commas between: test,mpi
#
# The versions are those of constraints.txt, which the tests were run with; UNPINNED=1 takes the newest that pyproject.toml
# allows (on a machine without a GPU, torch stays the one of constraints.txt). With an NVIDIA GPU torch and its triton are
# the ordinary CUDA build, whatever constraints.txt says of them.
#
# PYTHON names the interpreter to make .venv with (default: python3). On a machine without a GPU whose package index
# serves torch with CUDA only, TORCH_INDEX_URL may name PyTorch's index of CPU builds: it saves gigabytes.
set -euo pipefail
case " $* " in
    *" --help "* | *" -h "*)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cpu_torch="$(sed -n 's/^torch==//p' constraints.txt)"
extras="${1:-}"
interpreter="${PYTHON:-python3}"

fail() {
    echo "error: $*" >&2
    exit 2
}

for extra in ${extras//,/ }; do
    grep -q "^$extra = \[" pyproject.toml ||
        fail "there is no extra '$extra'; pyproject.toml has: $(sed -n '/optional-dependencies/,/^$/s/ = \[.*//p' pyproject.toml | xargs)"
done

# One stamp for each part, written after everything is in: an installation that was killed is done again.
case "${UNPINNED:-0}" in
    0) pinned=1 ;;
    1) pinned="" ;;
    *) fail "UNPINNED is '$UNPINNED'; it may be 1 (the newest versions) or 0 (those of constraints.txt, the default)" ;;
esac
gpu=""
if nvidia-smi -L >/dev/null 2>&1; then
    gpu=1
fi
wanted="$(cat pyproject.toml launchers/install.sh constraints.txt | cksum) ${pinned:+pinned}"
is_installed() {
    local part
    for part in base ${extras//,/ }; do
        [ "$(cat ".venv/installed/$part" 2>/dev/null || true)" = "$wanted" ] || return 1
    done
}
if is_installed; then
    exit 0
fi

command -v "$interpreter" >/dev/null || fail "$interpreter is not there; install Python 3.11 or newer, or set PYTHON"
"$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$interpreter is $("$interpreter" --version); Python 3.11 or newer is needed: install one and set PYTHON=/path/to/it"

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "making .venv with $("$interpreter" --version)"
    "$interpreter" -m venv .venv ||
        fail "could not make .venv (the message is above); on Debian and Ubuntu: apt-get install python3-venv"
fi
pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check "$@"
}

constraints=()
if [ -n "$pinned" ]; then
    versions="$(mktemp)"
    trap 'rm -f "$versions"' EXIT
    # A CUDA build of torch wants the triton that it was built for, which is another one than the tests' on a CPU.
    sed ${gpu:+-e '/^torch==/d' -e '/^triton==/d'} -e '/^#/d' constraints.txt >"$versions"
    constraints=(--constraint "$versions")
fi

if [ -n "$gpu" ]; then
    echo "NVIDIA GPU found: installing the ordinary torch build"
    pip_install "torch>=$cpu_torch" ${constraints[@]+"${constraints[@]}"}
else
    echo "no NVIDIA GPU found: installing torch $cpu_torch"
    # An index of CPU builds calls the version $cpu_torch+cpu, which pip prefers to the plain one.
    pip_install "torch==$cpu_torch" ${constraints[@]+"${constraints[@]}"} ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}
fi

pip_install -e ".${extras:+[$extras]}" ${constraints[@]+"${constraints[@]}"}

mkdir -p .venv/installed
for part in base ${extras//,/ }; do
    echo "$wanted" >".venv/installed/$part"
done
echo "installed into $PWD/.venv"
