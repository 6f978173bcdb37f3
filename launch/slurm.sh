#!/usr/bin/env bash
# Trains on a Slurm cluster, one process a GPU (docs/launching.md).
#
#   bash launch/slurm.sh start NAME --folder=/shared/me --nodes=2 --gpus=8 -- train --gin_file=… --gin.MODEL_DIR=/shared/me/NAME
#
# ACTIONs:
#   start     ships a commit into the folder and submits the job; leaves it alone where it waits or runs
#   logs      shows its log, until Ctrl-C
#   status    what Slurm says of it
#   stop      asks it to save and stop, and not to start again
#   delete    cancels it at once, with what it has not saved
#
# Before its time is up, or when it is preempted, the job saves, ends with exit code 75 and goes back into the queue.
# So it does where a process is killed (above 128) or lost (76), 50 times at most.
#
#   --folder                        of yours, absolute, on a file system that all nodes see: code, script and log
#   --nodes, --gpus, --cpus         nodes (1), GPUs of a node (8), processor cores of a process (8)
#   --time                          as Slurm has it, as in 24:00:00; the job goes on for longer than that
#   --warn                          seconds before the end of its time at which it saves (300)
#   --partition, --account, --qos   handed to sbatch as they are
#   --sbatch                        more of sbatch's options, as in --sbatch='--mem=0 --constraint=h100'
#   --container, --mounts           an image and mounts for srun's --container-image and --container-mounts (pyxis)
#   --ref                           the commit to ship (HEAD; refused when files have changed since)
#   --env=NAME=VALUE                set for the job; repeatable
#   --price                         of an hour of one GPU: costs are shown in it
#   --dry_run                       prints the commands instead
#
# Exit codes: 0 done; 1 error; 2 wrong arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source launch/common.sh

actions=(start logs status stop delete)
values=(folder= nodes=1 gpus=8 cpus=8 time= warn=300 partition= account= qos= sbatch= container= mounts= ref= price=)
switches=()
join=--distributed unit=GPU exists=""
read_arguments "$@"

# The script that Slurm runs, on the first node.
script() {
  local option variable
  echo "#!/bin/bash"
  echo "#SBATCH --job-name=$name --nodes=$nodes --ntasks-per-node=$gpus --gpus-per-node=$gpus --cpus-per-task=$cpus"
  echo "#SBATCH --requeue --open-mode=append --output=$(quote "$folder/$name/log")"
  echo "#SBATCH --signal=TERM@$warn"  # to the processes, not to this script
  for option in time partition account qos; do [ ! "${!option}" ] || echo "#SBATCH --$option=${!option}"; done
  [ ! "$sbatch" ] || echo "#SBATCH $sbatch"
  echo "cd $(quote "$folder/code/$commit")"
  # Slurm does not hand on the cores to srun by itself.
  echo "export SRUN_CPUS_PER_TASK=$cpus XL_FLAX_EXTRAS=gpu"
  for variable in "${environment[@]}"; do echo "export ${variable%%=*}=$(quote "${variable#*=}")"; done
  echo "$(quote srun --nodes=1 --ntasks=1 "${inside[@]}" bash launch/host.sh setup) || exit"
  # No --gpus-per-task: each process sees all GPUs of its node, and JAX takes the one of its number.
  # The processes end one another and say why; what is left of them after two minutes hangs.
  quote srun --kill-on-bad-exit=0 --wait=120 "${inside[@]}" bash launch/host.sh run "${job[@]}"
  echo "code=\$?"  # the highest
  echo "if [ \$code = $lost ] || [ \$code -gt 128 ]; then [ \${SLURM_RESTART_COUNT:-0} -lt 50 ] || exit \$code"
  echo "else [ \$code = $again ] || exit \$code; fi"
  echo "[ -e $(quote "$folder/$name/stop") ] || scontrol requeue \$SLURM_JOB_ID"
  echo "exit \$code"
}

# Sets `number` and `state` of the job, empty where it neither waits nor runs.
look() {
  local answer
  number="" state=""
  if [ "$dry_run" ]; then
    quote "${squeue[@]}"
    return
  fi
  answer="$("${squeue[@]}" 2>"$scratch/stderr")" || {
    failure="cannot ask Slurm: $(reason "$scratch/stderr")"
    return 1
  }
  read -r number state <<<"$answer" || true
}

start() {
  local file="$folder/$name/job.sbatch"
  look || die "$failure"
  if [ "$number" ]; then
    [ "$(script)" = "$(cat "$file" 2>/dev/null)" ] ||
      die "$name is there already, as job $number ($state), with other settings: stop it, or choose another name"
    say "$name is there already, as job $number ($state)"
    return
  fi
  attempt "cannot write to $folder" mkdir -p "$folder/code/$commit" "$folder/$name" || die "$failure"
  run rm -f "$folder/$name/stop"
  if [ "$dry_run" ]; then
    echo "git archive $commit | tar -x -C $(quote "$folder/code/$commit")"
    printf "cat >%s <<'END'\n%s\nEND\n" "$(quote "$file")" "$(script)"
  else
    git archive "$commit" | tar -x -C "$folder/code/$commit"
    script >"$file"
  fi
  cost "$((nodes * gpus))" 3600 "$nodes nodes × $gpus GPUs, each hour they run"
  exists=maybe
  attempt "cannot submit $name" sbatch "$file" || die "$failure"
}

leave() {
  [ "$exists" ] && [ ! "$dry_run" ] || return 0
  if ! look; then
    say "could not find out whether $name is in the queue: $failure"
    say "look: squeue --me; end it: scancel --me --name=$name"
  elif [ "$number" ]; then
    say "left: $name is job $number ($state); watch it: bash launch/slurm.sh logs $name $(quote --folder="$folder")"
    say "delete: bash launch/slurm.sh delete $name $(quote --folder="$folder")"
  else
    say "nothing of $name is in the queue"
  fi
}

needs folder
[[ "$folder" == /* ]] || wrong "--folder=$folder: must be an absolute path, which all nodes see"
for count in nodes gpus cpus warn; do check_number "$count" 1; done
squeue=(squeue --me --name="$name" --noheader --format='%i %T')
inside=()
if [ "$container" ]; then
  inside=(--container-image="$container" --container-mounts="$folder:$folder${mounts:+,$mounts}")
  inside+=(--container-workdir="$folder/code/${commit:-}")
elif [ "$mounts" ]; then
  wrong "--mounts are those of a container: give --container=IMAGE, too"
fi

case "$action" in
  start)
    check_job
    find_commit
    [ ! "$container" ] || inside[2]="--container-workdir=$folder/code/$commit"
    start ;;
  logs) run tail -n +1 -F "$folder/$name/log" ;;
  status)
    look || die "$failure"
    say "$name: ${state:-neither waits nor runs}${number:+, job $number}"
    [ ! -e "$folder/$name/log" ] || tail -n 3 "$folder/$name/log" ;;
  stop)
    run touch "$folder/$name/stop"
    exists=maybe
    attempt "cannot stop $name" scancel --me --name="$name" --signal=TERM || die "$failure" ;;
  delete)
    exists=maybe
    attempt "cannot delete $name" scancel --me --name="$name" || die "$failure" ;;
esac
