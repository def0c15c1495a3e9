#!/usr/bin/env bash
# Install what the tests need if it is not there, then lint, check the types and run the tests.
#
#     bash tests/run.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launchers/install.sh test,mpi,export,wandb
export PATH="$PWD/.venv/bin:$PATH" # the deepspeed launcher and ninja

# Two hosts out of network namespaces (tests/support/two_hosts.py) need these programs; without them their tests are skipped.
# Only in containers: elsewhere the package would start an ssh server on the machine.
two_hosts="iproute2 openssh-server openssh-client pdsh"
have_two_hosts() { command -v ip && command -v sshd && command -v ssh && command -v pdsh; } >/dev/null
if ! have_two_hosts && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ ! -d /run/systemd/system ]; then
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # no service is started
    # shellcheck disable=SC2086 # several packages
    { timeout 120 apt-get update && timeout 180 apt-get install -y --no-install-recommends $two_hosts; } >/dev/null 2>&1 ||
        echo "could not install $two_hosts; the tests that need them will be skipped"
fi

ruff check .
ruff format --check .
mypy
# A file's tests share their runs. A test that ends its process ends the run, which would wait for the lost tests forever.
python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
