#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, as a JobSet (docs/launching.md).
#
#   bash launch/gke.sh start NAME --bucket=gs://… --accelerator=tpu-v6e-slice --topology=16x16 --slices=2 \
#     -- train --gin_file=… --gin.MODEL_DIR=gs://…
#
# ACTIONs:
#   start       ships a commit to the bucket and creates the JobSet; leaves it alone where it runs
#   manifest    prints the JobSet, filled in from launch/jobset.yaml
#   logs        shows the log of the first slice's first host
#   status      the JobSet and its pods
#   delete      deletes the JobSet; it saves first, within five minutes
#
# Evicted pods and jobs that saved and stopped (exit code 75) are begun again without end, lost and killed processes
# --retries times; a job that ends by its own mistake (exit codes 1 and 2) is not.
#
#   --bucket              gs://BUCKET/FOLDER for the code
#   --accelerator         tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x, …
#   --topology            of a slice, as in 8x8 or 4x4x8
#   --chips_per_host      of the node pool's machines (4)
#   --slices              how many (1); each has a node pool for itself
#   --spot                only nodes that can be preempted
#   --reservation         only nodes of this reservation
#   --queue               Kueue's local queue, where the cluster has one
#   --context             kubectl's, if not the current one
#   --namespace           (default)
#   --image               has bash and Python 3.11 to 3.13, or an environment of ours (python:3.12)
#   --ref                 the commit to ship (HEAD; refused when files have changed since)
#   --env=NAME=VALUE      set for the job; repeatable
#   --retries             so often it is begun again after lost and killed processes (50)
#   --price               of a chip hour, in your currency: costs are shown in it
#   --dry_run             prints the commands instead
#
# Exit codes: 0 done; 1 error; 2 wrong arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/common.sh

typed="bash launch/gke.sh $(quote "$@")"
actions=(start manifest logs status delete)
values=(bucket= accelerator= topology= chips_per_host=4 slices=1 reservation= queue= context= namespace=default)
values+=(image=python:3.12 ref= retries=50 price=)
switches=(spot)
exists="" mark="" join=--distributed
read_arguments "$@"

# ---- The manifest

# A YAML string, in JSON's way; Kubernetes makes one $ of two.
text() {
  local word="${1//\\/\\\\}"
  word="${word//\"/\\\"}" word="${word//$'\n'/\\n}" word="${word//$'\t'/\\t}" word="${word//$'\r'/\\r}"
  echo "\"${word//\$/\$\$}\""
}

manifest() {
  local line key value word job_words="" variables
  # Nodes may come one by one, and each sets itself up: the first wait for the last.
  variables='{name: XL_FLAX_EXTRAS, value: tpu}, {name: XL_FLAX_JOIN_SECONDS, value: "600"}'
  for word in "${job[@]}"; do job_words+="${job_words:+, }$(text "$word")"; done
  for word in "${environment[@]}"; do variables+=", {name: ${word%%=*}, value: $(text "${word#*=}")}"; done
  while IFS= read -r line; do
    if [[ "$line" =~ @([a-z_]+)@ ]]; then
      key="${BASH_REMATCH[1]}"
      case "$key" in
        job) value="$job_words" ;;
        environment) value="$variables" ;;
        spot) value="${spot:+true}" ;;
        *) value="${!key}" ;;
      esac
      [ "$value" ] || continue
      line="${line/"@$key@"/"$value"}"
    fi
    printf '%s\n' "$line"
  done <launch/jobset.yaml
}

read_topology() {
  local side sides
  [[ "$topology" =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || wrong "--topology=$topology: is written as 16x16 or 4x4x8"
  chips=1
  IFS=x read -ra sides <<<"$topology"
  for side in "${sides[@]}"; do chips=$((chips * side)); done
  ((chips % chips_per_host == 0)) || wrong "--topology=$topology has $chips chips, which $chips_per_host a host do not divide"
  hosts=$((chips / chips_per_host))
}

# ---- The cluster

# Sets `state`: none, Running, or how it ended; and `there`, what it was made from.
look() {
  local command answer
  command=("${kubectl[@]}" get jobset "$name" --ignore-not-found
    -o 'jsonpath=Running{.status.terminalState} {.metadata.annotations.xl-flax-made-from}')
  if [ "$dry_run" ]; then
    quote "${command[@]}"
    state=none
    return
  fi
  answer="$("${command[@]}" 2>"$scratch/look")" || {
    failure="cannot look at $name: $(reason "$scratch/look")"
    return 1
  }
  read -r state there <<<"$answer" || true
  state="${state:-none}"
  [ "$state" = Running ] || state="${state#Running}"
}

start() {
  local file="$scratch/$commit.tar.gz"
  mark="$(manifest | cksum | cut -d' ' -f1)"
  look || die "$failure"
  case "$state" in
    none) ;;
    Running)
      [ "$there" = "$mark" ] || die "$name is there already with other settings: delete it, or choose another name"
      say "$name is there already"
      return ;;
    Completed) say "$name is done; to go on with more steps, delete it first"; return ;;
    *)
      say "$name ended as $state, and is begun again"
      delete ;;
  esac
  [ ! "$dry_run" ] || file="${TMPDIR:-/tmp}/$commit.tar.gz"
  pack "$file" || die "cannot pack $commit"
  attempt "cannot copy the code to $bucket" gcloud storage cp --quiet "$file" "$archive" || die "$failure"
  cost "$((slices * chips))" 3600 "$slices × $accelerator $topology, each hour"
  exists=maybe
  if [ "$dry_run" ]; then
    printf "%s <<'END'\n%s\nEND\n" "$(quote "${kubectl[@]}" create -f -)" "$(manifest)"
  else
    attempt "cannot create $name" "${kubectl[@]}" create -f - <<<"$(manifest)" || die "$failure"
  fi
}

delete() {
  attempt "cannot delete $name" "${kubectl[@]}" delete jobset "$name" --ignore-not-found || die "$failure"
}

# Whatever happened: what exists, and that node pools cost without a job, too.
leave() {
  [ "$exists" ] && [ ! "$dry_run" ] || return 0
  if ! look; then say "could not find out: $failure"; state=unknown; fi
  [ "$1" = 0 ] || say "go on:  $typed"
  if [ "$state" = none ]; then
    say "no JobSet $name is left"
  else
    say "left: JobSet $name is $state"
    say "delete: bash launch/gke.sh delete $name $(quote --namespace="$namespace" ${context:+"--context=$context"})"
  fi
  say "node pools COST as long as they have nodes, with a job or without: gcloud container node-pools list shows them"
}

for number in slices chips_per_host; do check_number "$number" 1; done
check_number retries 0
kubectl=(kubectl ${context:+"--context=$context"} --namespace="$namespace")
pods="jobset.sigs.k8s.io/jobset-name=$name"
case "$action" in
  start | manifest)
    needs bucket accelerator topology
    [[ "$bucket" == gs://[a-z0-9]* ]] || wrong "--bucket=$bucket: is written as gs://BUCKET/FOLDER"
    read_topology
    check_job
    find_commit
    archive="${bucket%/}/xl-flax-$commit.tar.gz" ;;
esac

case "$action" in
  start) start ;;
  manifest) manifest ;;
  logs)
    attempt "cannot show the log of $name" "${kubectl[@]}" logs --follow --tail=-1 --container=job \
      --selector="$pods,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0" || die "$failure" ;;
  status)
    attempt "cannot look at $name" "${kubectl[@]}" get jobset "$name" || die "$failure"
    attempt "cannot look at $name" "${kubectl[@]}" get pods -o wide --selector="$pods" || die "$failure" ;;
  delete)
    exists=maybe
    delete ;;
esac
