# shellcheck shell=bash
# Sourced by tests/run.sh after launch/environment.sh, whose functions it takes: a server of S3's protocol, in an
# environment of its own, as it needs another botocore than s3fs.

install_moto() {
  local uv word settings=(--quiet) tools done=1
  tools="$(mktemp -d)"
  if uv="$(find_uv)"; then
    while IFS= read -r word; do settings+=("$word"); done < <(settings_of_pip)
    "$uv" venv --quiet --clear --python "$venv/bin/python" .venv-moto &&
      "$uv" pip install --python .venv-moto/bin/python --index-strategy unsafe-best-match "${settings[@]}" \
        "moto[server]==5.2.5" && done=0
  fi
  rm -rf "$tools"
  return "$done"
}
[ -x .venv-moto/bin/moto_server ] || install_moto ||
  echo "moto could not be installed: tests of s3:// are skipped" >&2
