# shellcheck shell=bash
# Sourced by the scripts: makes (once) and activates the project's virtual environment.
# Usage: source launch/environment.sh EXTRAS        e.g. eval, or dev,hf
# XL_FLAX_VENV chooses another folder than .venv; XL_FLAX_EXTRAS adds extras (gpu, tpu).

extras="$1${XL_FLAX_EXTRAS:+,$XL_FLAX_EXTRAS}"
venv="${XL_FLAX_VENV:-.venv}"

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# uv of PATH, or one that pip fetches into the folder $tools.
find_uv() {
  local python
  command -v uv && return
  for python in "$venv/bin/python" python3; do
    [ -x "$tools/bin/uv" ] || "$python" -m pip install --quiet --target "$tools" uv >/dev/null 2>&1 || continue
    echo "$tools/bin/uv"
    return
  done
  return 1
}

# What pip's files and variables say of where packages come from, in uv's words, a word a line: uv reads none of it.
settings_of_pip() {
  "$venv/bin/python" -m pip config list | "$venv/bin/python" -c '
import ast, sys
lines = [line.strip().partition("=") for line in sys.stdin]
read = {key: ast.literal_eval(value) for key, _, value in lines}
names = {"index-url": "default-index", "extra-index-url": "index", "find-links": "find-links",
         "trusted-host": "allow-insecure-host", "constraint": "constraint"}
for name, ours in names.items():
    found = [read[f"{place}.{name}"] for place in (":env:", "install", "global") if f"{place}.{name}" in read]
    for word in found[0].split() if found else ():
        print(f"--{ours}={word}")
for place in (":env:", "install", "global"):
    if read.get(f"{place}.no-index", "").lower() in ("1", "true", "yes", "on"):
        print("--no-index")
        break
'
}

make_venv() {
  local python uv
  if python="$(find_python)"; then
    "$python" -m venv --clear "$venv" && return
    echo "error: could not make a virtual environment; on Debian: apt-get install python3-venv" >&2
  elif uv="$(find_uv)"; then
    "$uv" venv --quiet --seed --clear --python 3.12 "$venv" && return  # also where there is only an older Python
  fi
  echo "error: no Python 3.11 to 3.13 found; install one, or name it with PYTHON=/path/to/python3" >&2
  return 1
}

install() {
  local uv word settings=(--quiet)
  if uv="$(find_uv)"; then
    while IFS= read -r word; do settings+=("$word"); done < <(settings_of_pip)
    # As pip has it, the best version of all indexes counts, and not the first index that has any.
    "$uv" pip install --python "$venv/bin/python" --index-strategy unsafe-best-match "${settings[@]}" \
      -c constraints.txt -e ".[$extras]" && return
    echo "uv could not install it; trying pip, which is slower…" >&2
  fi
  # seqeval comes as source, which older pips build in an environment of their own only when asked.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e ".[$extras]" \
    2> >(grep -v '^WARNING' >&2)
}

# What is installed is named by its inputs: when they change, the installation is brought up to date.
stamp="$(cat setup.py constraints.txt | cksum | cut -d' ' -f1)"
missing=""
for extra in ${extras//,/ }; do
  [ -e "$venv/installed-$extra-$stamp" ] || missing=1
done
if [ "$missing" ]; then
  echo "Setting up $venv with [$extras] (once)…" >&2
  tools="$(mktemp -d)"
  failed=""
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv || failed=1
  [ "$failed" ] || install || failed=1
  rm -rf "$tools"
  [ ! "$failed" ] || exit 1
  for extra in ${extras//,/ }; do
    touch "$venv/installed-$extra-$stamp"
  done
fi
export PATH="$PWD/$venv/bin:$PATH"
case "$venv" in /*) export PATH="$venv/bin:$PATH" ;; esac
# A chip or driver that fails is an error: JAX by itself would go on without, on the processors.
case ",$extras," in
  *,tpu,*) export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}" ;;
  *,gpu,*) export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}" ;;
esac
# The environment keeps the bytecode of what is imported: without it a command begins 4 seconds later.
unset PYTHONDONTWRITEBYTECODE
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
# Large arrays in huge pages: on Linux a step on CPUs spends less of its time on page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
