#!/usr/bin/env bash
# What runs on each machine of a job. The other scripts in launch/ call it, over ssh, srun or in a container.
#
#   bash launch/host.sh run train --gin_file=gin/runs/quickstart.gin    # sets up, then runs the command
#
# The same in the background, for a job's NAME; what is known of it lies in HOME/xl_flax/jobs/NAME:
#
#   start NAME [VARIABLE=VALUE…] -- COMMAND FLAGS…    leaves it alone when it already runs
#   state NAME             one line: HOST running, ended EXITCODE, stopped, killed, or nothing
#   follow NAME BYTES      its log from there on, until it ends
#   stop NAME              asks it to save and stop (SIGTERM), and waits
#
# XL_FLAX_EXTRAS chooses the installation: gpu or tpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The lock is held as long as the job lives, and goes with the machine: a file of a process's number would not.
running() { [ -d "$folder" ] && ! flock --nonblock "$folder/lock" true; }

start() {
  mkdir -p "$folder"
  exec 9>"$folder/starting"  # of two starts at once, the second finds what the first began
  flock 9
  printf '%s\n' "$(pwd -P)" "$@" >"$folder/wanted"
  if running; then
    cmp -s "$folder/wanted" "$folder/command" && return
    echo "error: $(hostname) runs something else as $name; stop it first" >&2
    exit 3
  fi
  mv "$folder/wanted" "$folder/command"
  rm -f "$folder/code" "$folder/pid" "$folder/stopped"
  # -o: what the job leaves behind does not hold the lock.
  setsid flock --wait 5 -o "$folder/lock" bash launch/host.sh record "$name" "$@" \
    </dev/null >>"$folder/log" 2>&1 9>&- &
  for _ in {1..100}; do
    [ ! -e "$folder/pid" ] || return 0
    sleep 0.1
  done
  echo "error: $(hostname): the job did not start; see $folder/log" >&2
  exit 1
}

# In the background: runs the job, and leaves its exit code when it ends.
record() {
  local code=0
  while [ "$1" != -- ]; do
    export "${1?}"
    shift
  done
  shift
  echo "== $(hostname), $(date -u +%FT%TZ): ${*@Q}"
  trap : TERM  # meant for the job
  bash launch/host.sh run "$@" &
  echo $! >"$folder/pid"
  wait $! || code=$?
  while kill -0 $! 2>/dev/null; do code=0; wait $! || code=$?; done  # a signal ended the first wait
  echo "$code" >"$folder/code.new"
  mv "$folder/code.new" "$folder/code"
}

state() {
  if running; then echo "$(hostname) running"
  elif [ -e "$folder/stopped" ] && grep -qx '75\|143' "$folder/code"; then echo "$(hostname) stopped"
  elif [ -e "$folder/code" ]; then echo "$(hostname) ended $(cat "$folder/code")"
  elif [ -e "$folder/command" ]; then echo "$(hostname) killed"
  else echo "$(hostname) nothing"
  fi
}

follow() {
  tail -c "+$(($1 + 1))" -f "$folder/log" &
  trap 'kill $! 2>/dev/null' EXIT
  while running && kill -0 $! 2>/dev/null; do sleep 0.5; done
  sleep 0.5  # for the last lines
}

action="${1:-}"
case "$action" in
  run) [ $# -ge 2 ] || { echo "error: run needs a command, as in: bash launch/host.sh run train" >&2; exit 2; } ;;
  start | record | state | follow | stop)
    [ $# -ge 2 ] || { echo "error: $action needs the job's name; see --help" >&2; exit 2; } ;;
esac
case "$action" in
  run)
    source launch/environment.sh eval
    # Where notices of maintenance and preemption are read (xl_flax/notices.py); TPUs are Google's.
    [[ ",$extras," != *,tpu,* ]] || export GCE_METADATA_HOST="${GCE_METADATA_HOST:-metadata.google.internal}"
    exec python -m "xl_flax.$2" "${@:3}" ;;
  setup)
    source launch/environment.sh eval
    exit ;;
  start | record | state | follow | stop) ;;
  *)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' launch/host.sh
    [ "$action" = --help ] && exit
    exit 2 ;;
esac

name="$2" folder="$HOME/xl_flax/jobs/$2"
case "$action" in
  stop)
    if running; then
      touch "$folder/stopped"  # on request: not to be started again by who follows it
      until [ -e "$folder/pid" ] || ! running; do sleep 0.1; done
      kill -TERM "$(cat "$folder/pid")" 2>/dev/null || true
      while running; do sleep 0.5; done
    fi
    state ;;
  *) "$action" "${@:3}" ;;
esac
