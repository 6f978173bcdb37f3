#!/usr/bin/env bash
# Sets everything up and runs the tests:  bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/environment.sh dev,hf
if [ $# -eq 0 ]; then
  ruff check .
  ruff format --check .
fi
# Two processes, a file in one of them; -n 0 among the arguments for one.
python -m pytest -n 2 --dist loadfile "$@"
