#!/usr/bin/env bash
# Trains on Cloud TPU VMs, which are asked for as a queued resource (docs/launching.md).
#
#   bash launch/tpu_vm.sh run NAME --project=… --zone=… --type=v5litepod-64 --spot -- train --gin_file=… --gin.MODEL_DIR=gs://…
#
# ACTIONs:
#   run        all that follows, in this order; after a preemption again, until training is done; then deletes.
#              Started again, also from another machine, it goes on where it is.
#   create     asks for the slices       wait      until they are there
#   install    ships a commit to every host, and sets it up
#   start      starts the job on every host; leaves it alone where it runs
#   logs       shows the first host's log until the job ends
#   status     what exists, what each host does, what it has cost
#   stop       asks the job to save and stop, and ends a run that follows it; the slices stay, and cost
#   delete     deletes the slices
#
#   --project, --zone    where
#   --type               a slice, as in v5litepod-64, v5p-128, v6e-256
#   --slices             how many of them (1)
#   --spot, --reserved   from what can be preempted, or from any reservation of yours that fits; neither: on demand
#   --reservation        from that of this name, or projects/OWNER/reservations/NAME
#   --valid_until        give up waiting after, as in 6h or 2d
#   --runtime            the VMs' software, chosen by --type if not given
#   --service_account, --network, --subnetwork, --tags, --labels    handed to gcloud as they are
#   --internal           VMs without external addresses; ssh goes through Identity-Aware Proxy
#   --ref                the commit to ship (HEAD; refused when files have changed since)
#   --env=NAME=VALUE     set for the job; repeatable
#   --retries            so often run begins again after preemption, a lost or killed process or exit code 75 (50)
#   --keep               run leaves the slices when it is done
#   --poll               seconds between two looks (30)
#   --price              of a chip hour, in your currency: costs are shown in it
#   --dry_run            prints the commands instead, as if all went well
#
# Exit codes: 0 done; 1 error; 2 wrong arguments; 75 not done, but nothing is wrong: the same command goes on; else the job's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/common.sh

typed="bash launch/tpu_vm.sh $(quote "$@")"
actions=(run create wait install start logs status stop delete)
values=(project= zone= type= slices=1 valid_until= runtime= service_account= network= subnetwork= tags= labels=)
values+=(reservation= ref= retries=50 poll=30 price=)
switches=(spot reserved internal keep)
join=--distributed chips=0 exists="" expected=none since="" held=0 life=0 extras=tpu
read_arguments "$@"

# ---- What is asked for

# Sets `chips` and the default of --runtime. Up to v5p, types count cores, of which a chip has two.
read_type() {
  local generation="${type%-*}" number="${type##*-}" software
  [[ "$type" =~ ^v[0-9][a-z]*-[1-9][0-9]*$ ]] || wrong "--type=$type: a type is written as in v5litepod-64 or v6e-256"
  case "$generation" in
    v2 | v3 | v4) software=tpu-ubuntu2204-base number=$((number / 2)) ;;
    v5litepod) software=v2-alpha-tpuv5-lite ;;
    v5p) software=v2-alpha-tpuv5 number=$((number / 2)) ;;
    v6e) software=v2-alpha-tpuv6e ;;
    *) wrong "--type=$type: there are v2, v3, v4, v5litepod, v5p and v6e; newer ones are had on GKE only (launch/gke.sh)" ;;
  esac
  ((number)) || wrong "--type=$type is less than a chip: up to v5p, types count cores, of which a chip has two"
  runtime="${runtime:-$software}"
  chips=$((number * slices))
}

# Sets `create`, the command.
set_create() {
  local nodes=(--node-id="$name") option
  [ "$slices" = 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  # Only gcloud's alpha commands take the name of a reservation.
  create=(gcloud ${reservation:+alpha} compute tpus queued-resources create "$name" "${flags[@]}" "${nodes[@]}"
    --accelerator-type="$type" --runtime-version="$runtime")
  [ ! "$spot" ] || create+=(--spot)
  [ ! "$reserved" ] || create+=(--reserved)
  [ ! "$reservation" ] || create+=(--reservation="$reservation")
  [ ! "$internal" ] || create+=(--internal-ips)
  [ ! "$valid_until" ] || create+=(--valid-until-duration="$valid_until")
  for option in service_account network subnetwork tags labels; do
    [ ! "${!option}" ] || create+=("--${option//_/-}=${!option}")
  done
}

# ---- The queued resource

# Sets `state` (none: there is no such request), `there` (its type) and `why`. Returns 1 when that cannot be found out.
look() {
  local command answer
  command=(gcloud compute tpus queued-resources describe "$name" "${flags[@]}"
    --format='value[separator=" "](state.state,tpu.nodeSpec[0].node.acceleratorType,state.failedData.error.message)')
  there="" why=""
  if [ "$dry_run" ]; then
    quote "${command[@]}"
    state="$expected"
  elif answer="$("${command[@]}" 2>"$scratch/look")"; then
    read -r state there why <<<"$answer"
    state="${state:-UNKNOWN}"
  elif grep -qi "not.found.*queuedResources/\|queuedResources/.*not.found" "$scratch/look"; then
    state=none
  else
    failure="cannot look at $name in $zone: $(reason "$scratch/look")"
    return 1
  fi
}

# As look, but waits for some minutes when the connection is gone.
look_patiently() {
  local tries
  for tries in {1..10}; do
    look && return
    ! grep -qi 'permission\|account\|credential\|reauth\|invalid\|has not been used' "$scratch/look" || die "$failure"
    [ "$tries" != 1 ] || say "$failure; trying again"
    sleep "$poll"
  done
  code=$again die "$failure"
}

# Waits until the slices are there. Returns 1 when they will not come; `state` says why.
wait_until_there() {
  local before=""
  while look_patiently; do
    [ "$state" = "$before" ] || [ "$dry_run" ] || say "$(date +%T) $name: $state"
    before="$state"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | none) return 1 ;;
    esac
    sleep "$poll"
  done
}

create() {
  cost "$chips" 3600 "$slices × $type, each hour once they are there"
  exists=maybe
  attempt "cannot create $name" "${create[@]}" || die "$failure"
  expected=ACTIVE seen=0
}

# Deletes the request with its slices.
remove() {
  exists=maybe
  attempt "cannot delete $name" gcloud compute tpus queued-resources delete "$name" "${flags[@]}" --force ||
    { look && [ "$state" = none ]; } || die "$failure"
  exists="" expected=none
}

# ---- The hosts

# on WHICH COMMAND: in a shell of the first host, or of all.
on() {
  local hosts=(--node=all --worker=all)
  [ "$1" = all ] || hosts=(--node=0 --worker=0)
  attempt "$name" gcloud compute tpus queued-resources ssh "$name" "${flags[@]}" "${hosts[@]}" "${tunnel[@]}" \
    --command="$2" && on_all_slices
}

# gcloud leaves out a slice that it cannot reach, warns, and exits with 0.
on_all_slices() {
  [ "$dry_run" ] || ! grep -q 'Could not prepare all' "$scratch/stderr" || { failure="$name: a slice is out of reach"; return 1; }
}

# ssh may be refused for a minute, until the VMs have the key; gcloud tries again.
copy() {
  attempt "cannot copy the code to $name" gcloud compute tpus queued-resources scp "$1" "$name:" "${flags[@]}" \
    --node=all --worker=all "${tunnel[@]}" && on_all_slices
}

# Hosts do not answer, or the job failed: returns 0 when the slices are gone or going, 1 when all hosts answer.
lost() {
  local tries=20
  [ "$spot" ] || [ "$outcome" != failed ] || return 1
  [ "$outcome" != failed ] || tries=3  # the slices may be going, and the job have noticed first
  while ((tries--)); do
    look_patiently
    [ "$state" = ACTIVE ] || return 0
    [ "$outcome" = failed ] || ! on all true 2>/dev/null || return 1
    sleep "$poll"
  done
  [ "$outcome" = failed ] || code=$again die "$name is ACTIVE, but not all of its hosts answer: $failure"
  return 1
}

# ---- All of it

# One life of the slices. Returns 0 when the job is done, 1 when it is to begin again; `failure` says why.
live() {
  look_patiently
  case "$state" in
    none) [ "$life" = 0 ] || die "$name was deleted meanwhile, and is not asked for again" ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      say "$name is $state${why:+: $why}: it is deleted and asked for again"
      wait_until_there || true
      [ "$state" = none ] || remove
      state=none ;;
  esac
  [ "$state" != none ] || create
  exists=maybe
  wait_until_there || { failure="$name: $state${why:+, $why}"; [ "$state" = SUSPENDED ] && return 1; die "$failure$(remedy "$failure")"; }
  check_type
  since=$SECONDS outcome="" looks=0
  prepare || { lost && return 1; die "$failure"; }
  while true; do
    follow
    ask_hosts
    case "$outcome" in
      "done") return 0 ;;
      running)
        # Where some have ended, the others do so within a minute, or hang.
        [[ "$unfinished" != *" ended "* ]] || ((++looks < 6)) || code=$again die "$unfinished: what still runs hangs"
        sleep "$poll" ;;
      stopped) code=$again die "the job was asked to stop, and has saved" ;;
      unreachable) ! lost || { failure="$name: $state"; return 1; } ;;
      again) failure="to be started again: $unfinished"; return 1 ;;
      failed) lost && { failure="$name: $state"; return 1; }; code="$job_code" die "the job failed: $unfinished" ;;
    esac
  done
}

# Code and job on all hosts; a connection that broke is tried again, for what is there already is left alone.
prepare() {
  local result
  for _ in 1 2 3; do
    { install && start; } && return
    result=$?
    [ "$result" = 255 ] || break
    sleep "$poll"
  done
  return "$result"
}

check_type() {
  [ ! "$there" ] || [ "$there" = "$type" ] ||
    die "$name is there already as $there, not $type: choose another name, or delete it first"
}

train() {
  for ((life = 0; life <= retries; life++)); do
    if live; then
      say "done: $name"
      [ "$keep" ] || remove
      return
    fi
    count_time
    [ "$life" -lt "$retries" ] || break
    say "again, $((life + 1)) of $retries: $failure"
    sleep "$poll"
  done
  code=$again die "begun again $retries times, and then: $failure"
}

# Adds to `held` the seconds for which this life of the slices has been there.
count_time() {
  [ ! "$since" ] || held=$((held + SECONDS - since))
  since=""
}

status() {
  local born
  look || die "$failure"
  say "$name in $zone of $project: $state ${there:+($there) }$why"
  [ "$state" != none ] || return 0
  attempt "cannot list the slices of $name" gcloud compute tpus tpu-vm list "${flags[@]}" --filter="name~^$name(-[0-9]+)?\$" \
    --format='value(name,state,health,createTime)' >"$scratch/slices" || die "$failure"
  cat "$scratch/slices"
  [ "$dry_run" ] || [ "$state" = ACTIVE ] || return 0
  on all "$(host_sh state "$name")" || die "$failure"
  [ ! "$dry_run" ] || return 0
  type="$there" slices="$(wc -l <"$scratch/slices")"
  read_type
  born="$(date -d "$(awk 'NR == 1 {print $NF}' "$scratch/slices")" +%s 2>/dev/null)" || return 0
  cost "$chips" $(($(date +%s) - born)) "$slices × $type so far"
}

# Whatever happened: what exists, what it costs, how to go on and how to end it.
leave() {
  count_time
  [ "$held" = 0 ] || cost "$chips" "$held" "$name, while this ran"
  [ "$exists" ] && [ ! "$dry_run" ] || return 0
  say "$name in zone $zone of project $project may exist; looking…"
  if ! look; then say "could not find out: $failure"; state=unknown; fi
  case "$state" in
    none) say "nothing is left of it"; return ;;
    FAILED | SUSPENDED) say "left: $name is $state; it costs nothing, but counts against the quota" ;;
    ACTIVE | PROVISIONING | CREATING) say "left: $name is $state, and COSTS until it is deleted" ;;
    *) say "left: $name is $state; it COSTS as soon as the slices are there" ;;
  esac
  [ "$1" = 0 ] || say "go on:  $typed"
  say "delete: bash launch/tpu_vm.sh delete $(quote "$name" "${where[@]}")"
}

needs project zone
check_number slices 1
check_number poll 0
check_number retries 0
where=(--project="$project" --zone="$zone")
flags=("${where[@]}" --quiet)  # questions would not be seen
tunnel=()
[ ! "$internal" ] || tunnel=(--tunnel-through-iap)
[[ "$spot$reserved${reservation:+yes}" != yesyes* ]] || wrong "--spot, --reserved and --reservation exclude one another"
case "$action" in
  run | create) needs type; read_type; set_create ;;
  *) expected=ACTIVE ;;
esac
case "$action" in run | start) check_job ;; esac
case "$action" in run | install) find_commit ;; esac
[ "$dry_run" ] || command -v gcloud >/dev/null || die "gcloud is not installed, or not in PATH: cloud.google.com/sdk/docs/install"

case "$action" in
  run) train ;;
  create) create ;;
  wait) exists=maybe; wait_until_there || die "$name: $state${why:+, $why}$(remedy "$why")" ;;
  install | start) exists=maybe; "$action" || die "$failure" ;;
  logs) on first "$(host_sh follow "$name" 0)" || die "$failure" ;;
  status) status ;;
  stop) exists=maybe; on all "$(host_sh stop "$name")" || die "$failure" ;;
  delete) remove; say "deleted: $name" ;;
esac
