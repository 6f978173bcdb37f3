#!/usr/bin/env bash
# Runs a command as one job of N processes on this machine, connected over loopback.
#
#   bash launch/local_processes.sh 2 python -m xl_flax.train --gin_file=gin/runs/quickstart.gin
#   bash launch/local_processes.sh --dry_run 4 python -m xl_flax.evaluate --gin_file=gin/runs/quickstart.gin
#
# Each process is told its number with --coordinator, --num_processes and --process_id, and its lines begin with
# that number. They compute on CPUs, unless JAX_PLATFORMS says otherwise; JAX_NUM_CPU_DEVICES=D gives each D devices.
# Ctrl-C and SIGTERM are passed on. The exit code is that of the first process that fails; what is then left of the
# others after PATIENCE seconds (60) is ended. --dry_run prints the commands, and runs none.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
}
fail() {
  echo "error: $1; see --help" >&2
  exit 2
}

dry_run=
while [[ "${1:-}" == -* ]]; do
  case "$1" in
    --help | -h) usage; exit ;;
    --dry_run) dry_run=1; shift ;;
    *) fail "unknown flag $1" ;;
  esac
done
count="${1:-}"
[[ "$count" =~ ^[1-9][0-9]{0,2}$ ]] || fail "N, the number of processes, must come first, from 1 to 999"
shift
[ $# -gt 0 ] || fail "no command"
[[ "$1" != -* ]] || fail "$1 stands where the command begins; flags of this script come before N"

free_port() {
  local port
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 12000))  # below those that Linux gives to whoever connects
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
  fail "no free port found"
}

port="$(free_port)"
export PYTHONUNBUFFERED=1 JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
joining=("--coordinator=127.0.0.1:$port" "--num_processes=$count")
if [ -n "$dry_run" ]; then
  for ((i = 0; i < count; i++)); do
    printf 'JAX_PLATFORMS=%q JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo PYTHONUNBUFFERED=1' "$JAX_PLATFORMS"
    printf ' %q' "$@" "${joining[@]}" "--process_id=$i"
    echo
  done
  exit
fi

set -m  # each process in a group of its own: a signal reaches all of it, and Ctrl-C only this script
groups=()
pass_on() {
  for group in "${groups[@]}"; do kill "-$1" -- "-$group" 2>/dev/null || :; done
}
asked=
# shellcheck disable=SC2329  # the traps call it
ask() {
  asked=1
  pass_on "$1"
}
trap 'ask INT' INT
trap 'ask TERM' TERM HUP
trap 'pass_on KILL' EXIT
for ((i = 0; i < count; i++)); do
  (
    trap : INT TERM  # the command ends by these, and this shell says with which code
    set +e
    "$@" "${joining[@]}" "--process_id=$i" 2>&1 </dev/null | (trap '' INT TERM; exec sed -u "s/^/[$i] /")
    status="${PIPESTATUS[0]}"
    [ "$status" -le 128 ] || echo "[$i] ended by signal $((status - 128))"
    exit "$status"
  ) 2>/dev/null &
  groups+=("$!")
done

code=0
for ((ended = 0; ended < count; )); do
  status=0
  wait -n || status=$?
  if [ -n "$asked" ]; then  # a signal ended the waiting, not a process
    asked=
    continue
  fi
  ended=$((ended + 1))
  if [ "$code" -eq 0 ] && [ "$status" -ne 0 ]; then
    code="$status"
    (sleep "${PATIENCE:-60}"; pass_on TERM; sleep 10; pass_on KILL) &
    groups+=("$!")
    disown
  fi
done
exit "$code"
