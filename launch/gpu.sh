#!/usr/bin/env bash
# Trains on one machine with GPUs that is reached by ssh (docs/launching.md). On the machine itself launch/local.sh does:
# XL_FLAX_EXTRAS=gpu bash launch/local.sh …
#
#   bash launch/gpu.sh run NAME --host=me@machine -- train --gin_file=… --gin.MODEL_DIR=/data/runs/NAME
#
# ACTIONs:
#   run        all that follows, in this order; when the job was stopped, again, until training is done.
#              Started again, also from another machine, it goes on where it is.
#   install    ships a commit to the machine, and sets it up
#   start      starts the job; leaves it alone where it runs
#   logs       shows its log until it ends
#   status     what it does
#   stop       asks it to save and stop, and ends a run that follows it
#
#   --host            as ssh knows it; its account on that machine needs nothing but Python or uv
#   --ref             the commit to ship (HEAD; refused when files have changed since)
#   --env=NAME=VALUE  set for the job; repeatable
#   --retries         so often run starts a job again that was stopped or killed (50)
#   --poll            seconds between two looks (30)
#   --gpus, --price   how many the machine has (1), and the price of an hour of one: costs are shown in it
#   --dry_run         prints the commands instead, as if all went well
#
# Exit codes: 0 done; 1 error; 2 wrong arguments; 75 not done, but nothing is wrong: the same command goes on; else the job's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/common.sh

typed="bash launch/gpu.sh $(quote "$@")"
actions=(run install start logs status stop)
values=(host= ref= retries=50 poll=30 gpus=1 price=)
switches=()
join="" unit=GPU exists="" extras=gpu
read_arguments "$@"

on() { attempt "$host" ssh -o ServerAliveInterval=30 "$host" "$2"; }

copy() { attempt "cannot copy the code to $host" scp -q "$1" "$host:"; }

train() {
  local restarts=0 silent=0
  { install && start; } || die "$failure"
  while true; do
    follow || true
    ask_hosts
    case "$outcome" in
      "done") return ;;
      running) silent=0 ;;
      failed) code="$job_code" die "the job failed: $unfinished" ;;
      stopped) code=$again die "the job was asked to stop, and has saved" ;;
      unreachable) ((++silent < 20)) || code=$again die "$host does not answer; the job may go on there" ;;
      again)
        ((++restarts <= retries)) || code=$again die "started again $retries times, and then: $unfinished"
        say "again, $restarts of $retries: $unfinished"
        start || die "$failure" ;;
    esac
    sleep "$poll"
  done
}

leave() {
  [ "$exists" ] && [ ! "$dry_run" ] || return 0
  [ "$1" = 0 ] || say "go on: $typed"
  say "the machine $host costs as long as it is there; this script neither made it nor ends it"
  cost "$gpus" "$SECONDS" "$gpus GPUs while this ran"
}

needs host
for number in retries poll; do check_number "$number" 0; done
check_number gpus 1
case "$action" in run | start) check_job ;; esac
case "$action" in run | install) find_commit ;; esac
case "$action" in run | install | start) exists=maybe ;; esac

case "$action" in
  run) train; say "done: $name" ;;
  install | start) "$action" || die "$failure" ;;
  logs) on first "$(host_sh follow "$name" 0)" || die "$failure" ;;
  status) on all "$(host_sh state "$name")" || die "$failure" ;;
  stop) on all "$(host_sh stop "$name")" || die "$failure" ;;
esac
