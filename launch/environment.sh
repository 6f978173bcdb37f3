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
  echo "error: no Python 3.11 to 3.13 found; install one, or name it with PYTHON=/path/to/python3" >&2
  return 1
}

python_for_venv="$(find_python)" || exit 1
# What is installed is named by its inputs: when they change, the installation is brought up to date.
stamp="$(cat setup.py constraints.txt | cksum | cut -d' ' -f1)"
for extra in ${extras//,/ }; do
  [ -e "$venv/installed-$extra-$stamp" ] || missing=1
done
if [ -n "${missing:-}" ]; then
  echo "Setting up $venv with [$extras] (once, a few minutes)…" >&2
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python_for_venv" -m venv --clear "$venv" ||
    { echo "error: could not make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
  # seqeval comes as source, which older pips build in an environment of their own only when asked.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 -c constraints.txt -e ".[$extras]" 2> >(grep -v '^WARNING' >&2)
  for extra in ${extras//,/ }; do
    touch "$venv/installed-$extra-$stamp"
  done
fi
export PATH="$PWD/$venv/bin:$PATH"
case "$venv" in /*) export PATH="$venv/bin:$PATH" ;; esac
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
# Large arrays in huge pages: on Linux a step on CPUs spends less of its time on page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
