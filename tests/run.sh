#!/usr/bin/env bash
# Install what the tests need if it is not there, then lint, check the types and run the tests.
#
#     bash tests/run.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launchers/install.sh test,mpi
export PATH="$PWD/.venv/bin:$PATH" # the deepspeed launcher and ninja

ruff check .
ruff format --check .
mypy
python -m pytest "$@"
