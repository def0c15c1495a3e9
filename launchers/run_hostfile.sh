#!/usr/bin/env bash
# Run a training command on the hosts of a hostfile, over pdsh, or host by host without ssh.
#
#     bash launchers/run_hostfile.sh --hostfile HOSTFILE STAGE FLAGS...
#     bash launchers/run_hostfile.sh --hostfile HOSTFILE --no_ssh --node_rank N --master_addr ADDRESS STAGE FLAGS...
#
# STAGE: general_distill, finetune_teacher, task_distill. The checkout and its .venv are at the same path on every host. SIGTERM,
# SIGUSR1, SIGHUP and Ctrl-C are passed on to the ranks, which save and leave; nothing of theirs stays behind. More: --help.
set -euo pipefail
python="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python"
if [ ! -x "$python" ]; then
    echo "error: $python is not there; run: bash launchers/install.sh" >&2
    exit 2
fi
exec "$python" -m tinybert_ds.launch "$@"
