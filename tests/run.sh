#!/usr/bin/env bash
# Sets everything up and runs the tests:  bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/environment.sh dev,hf

# A server of S3's protocol, in an environment of its own: it needs another botocore than s3fs.
install_moto() {
  local uv word settings=(--quiet) tools
  tools="$(mktemp -d)"
  if uv="$(find_uv)"; then
    while IFS= read -r word; do settings+=("$word"); done < <(settings_of_pip)
    "$uv" venv --quiet --clear --python "$venv/bin/python" .venv-moto &&
      "$uv" pip install --python .venv-moto/bin/python --index-strategy unsafe-best-match "${settings[@]}" "moto[server]==5.2.5"
  fi
  rm -rf "$tools"
}
[ -x .venv-moto/bin/moto_server ] || install_moto || echo "moto could not be installed: tests of s3:// are skipped" >&2
if [ $# -eq 0 ]; then
  ruff check .
  ruff format --check .
fi
# Two processes, a file in one of them, long files first; -n 0 among the arguments for one process.
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
