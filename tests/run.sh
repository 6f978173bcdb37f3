#!/usr/bin/env bash
# Sets everything up and runs the tests:  bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/environment.sh dev,hf
source tests/support/moto.sh
if [ $# -eq 0 ]; then
  ruff check .
  ruff format --check .
fi
# Two processes, a file in one of them, long files first; -n 0 among the arguments for one process.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
