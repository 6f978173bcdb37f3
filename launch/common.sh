# shellcheck shell=bash
# Sourced by the scripts that start jobs on other machines: arguments, run or print, quoting, code, errors, cost.
#
# A script names its `actions` and its options, `values` (each NAME=DEFAULT) and `switches`, then calls read_arguments.
# After that each option is a variable, and `action`, `name`, `environment` and `job` hold the rest.

readonly again=75  # exit code: nothing is lost, the same command goes on
readonly lost=76   # exit code of a process that lost another one; above 128 it was killed itself

say() { echo "$*" >&2; }

die() {
  say "error: $*"
  exit "${code:-1}"
}

wrong() { code=2 die "$*"; }

# ---- Arguments: ACTION NAME --OPTION=VALUE … -- COMMAND FLAGS…

read_arguments() {
  local word key words=()
  for word in "${values[@]}"; do printf -v "${word%%=*}" %s "${word#*=}"; done
  for word in "${switches[@]}" dry_run; do printf -v "$word" %s ""; done
  environment=() job=()
  while [ $# -gt 0 ]; do
    key="${1#--}" key="${key%%=*}"
    case "$1" in
      --help | -h)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' "launch/${0##*/}"
        exit ;;
      --)
        job=("${@:2}")
        break ;;
      --env=*)
        [[ "$1" =~ ^--env=[A-Za-z_][A-Za-z0-9_]*= ]] || wrong "$1: an environment variable is given as --env=NAME=VALUE"
        environment+=("${1#--env=}") ;;
      --env) wrong "$1: an environment variable is given as --env=NAME=VALUE" ;;
      --*=*)
        [[ " ${switches[*]} dry_run " != *" $key "* ]] || wrong "--$key takes no value: give --$key, or leave it out"
        [[ " ${values[*]%%=*} " == *" $key "* ]] || unknown "$key"
        printf -v "$key" %s "${1#*=}" ;;
      --*)
        [[ " ${values[*]%%=*} " != *" $key "* ]] || wrong "--$key takes a value: --$key=VALUE"
        [[ " ${switches[*]} dry_run " == *" $key "* ]] || unknown "$key"
        printf -v "$key" yes ;;
      *) words+=("$1") ;;
    esac
    shift
  done
  action="${words[0]:-}" name="${words[1]:-}"
  [ "$action" ] || wrong "say what to do, as in: bash $0 status NAME; --help explains"
  [[ " ${actions[*]} " == *" $action "* ]] || wrong "there is no action $action; there are ${actions[*]}"
  [ ${#words[@]} -lt 3 ] ||
    wrong "too much: ${words[2]}. Options are given as --NAME=VALUE, and the job's own flags come behind --"
  check_name
  [[ "$price" =~ ^([0-9]+(\.[0-9]+)?)?$ ]] || wrong "--price=$price: must be a number, as in 1.25"
}

unknown() { wrong "there is no option --$1; --help has them all. The job's own flags come behind --"; }

# Refuses a name that Google Cloud, Kubernetes or Slurm would refuse later, or take apart.
check_name() {
  [ "$name" ] || wrong "$action needs the job's name: bash $0 $action NAME"
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    wrong "$name: a name has small letters, digits and -, begins with a letter, and has at most 40 characters"
}

# needs OPTION…: all of them must be given.
needs() {
  local option
  for option in "$@"; do [ "${!option}" ] || wrong "$action needs --$option=VALUE; --help explains it"; done
}

# A whole number of at least $2.
check_number() { [[ "${!1}" =~ ^[0-9]{1,6}$ && "${!1}" -ge "$2" ]] || wrong "--$1=${!1}: must be a whole number, at least $2"; }

# The job must be a command of ours, whose results outlive the machines; its processes join with the flag `join`.
check_job() {
  local word model_dir="" vocabulary="" outlives='^(/|~|(gs|s3)://)'
  case "${job[0]:-}" in
    train | evaluate) job=("${job[0]}" ${join:+"$join"} "${job[@]:1}") ;;
    vocab) [ ! "$join" ] || wrong "vocab is made once, on one machine: here, or with launch/gpu.sh" ;;
    cache) [ ! "$join" ] || wrong "cache is for one machine: here, or with launch/gpu.sh; on many, train makes what a shared folder lacks" ;;
    *) wrong "say behind -- what to run, as in: -- train --gin_file=FILE …; there are train, evaluate, vocab and cache" ;;
  esac
  for word in "${job[@]}"; do
    case "$word" in
      --gin.MODEL_DIR=*) model_dir="${word#*=}" ;;
      --gin.VOCABULARY=*) vocabulary="${word#*=}" ;;
    esac
  done
  [[ "${job[0]}" =~ ^(vocab|cache)$ || "$model_dir" =~ $outlives ]] ||
    wrong "the machines come and go: give --gin.MODEL_DIR=gs://BUCKET/RUN, or an absolute path that all of them see"
  [[ ! "$join" || ! "$vocabulary" || "$vocabulary" =~ $outlives ]] || git cat-file -e "${ref:-HEAD}:$vocabulary" 2>/dev/null ||
    wrong "--gin.VOCABULARY=$vocabulary is only here: give gs://BUCKET/FILE, or an absolute path that all machines see"
}

# ---- Run or print

# The words as a shell reads them back, here or on the other side of ssh.
quote() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Says on stderr what it runs, and runs it; with --dry_run only prints it.
run() {
  if [ "$dry_run" ]; then
    quote "$@"
  else
    say "+ $(quote "$@")"
    "$@"
  fi
}

# attempt WHAT COMMAND…: as run, but what the command says on stderr goes, when it fails, into `failure`: one line.
attempt() {
  local code=0
  if [ "$dry_run" ]; then
    quote "${@:2}"
    return
  fi
  say "+ $(quote "${@:2}")"
  "${@:2}" 2>"$scratch/stderr" || code=$?
  [ "$code" = 0 ] || failure="$1: $(reason "$scratch/stderr" "$code")"
  return "$code"
}

# reason FILE EXITCODE: what a program said of its error, on one line, with what to do about it.
reason() {
  local text said
  said="$(grep -v '^[EIW][0-9]\{4\} [0-9:.]* ' "$1" || cat "$1")"  # without what kubectl logs before it says it
  text="$(grep -i -A3 -m1 'error' <<<"$said" || tail -n 3 <<<"$said")"
  text="$(tr -s '\n\t ' ' ' <<<"${text:-exit code ${2:-1}}")"
  text="${text% }"
  echo "${text:0:400}$(remedy "$text")"
}

remedy() {
  case "$1" in
    *[Qq]uota* | *RATE_LIMIT*)
      echo " (ask for more at console.cloud.google.com/iam-admin/quotas; suspended and failed requests count, too: delete them)" ;;
    *"no more capacity"* | *[Ii]nsufficient* | *RESOURCE_EXHAUSTED* | *[Ss]tockout*)
      echo " (there are none left just now: try again, another zone, or a reservation)" ;;
    *"Permission denied on 'locations/"* | *"Invalid value"*zone* | *"Location"*"not found"*)
      echo " (is --zone right? gcloud compute tpus locations list shows the zones)" ;;
    *"connection to the server"*)
      echo " (which cluster? gcloud container clusters get-credentials NAME tells kubectl of it; --context chooses one)" ;;
    *'no matches for kind "JobSet"'* | *"resource type \"jobset\""*)
      echo " (install JobSet: jobset.sigs.k8s.io/docs/installation)" ;;
    *"has not been used"* | *SERVICE_DISABLED*) echo " (enable it: gcloud services enable NAME.googleapis.com)" ;;
    *PERMISSION_DENIED* | *"not have permission"* | *[Ff]orbidden*)
      echo " (is --project right, and has your account the rights? gcloud auth list shows the account)" ;;
    *"active account"* | *[Rr]eauth* | *"credentials"*) echo " (log in: gcloud auth login)" ;;
    *ALREADY_EXISTS* | *"already exists"*) echo " (status shows it; take another name, or delete it)" ;;
    *ssh-add*) echo " (eval \"\$(ssh-agent)\"; ssh-add ~/.ssh/google_compute_engine)" ;;
    *"command not found"* | *"No such file or directory"*) echo " (is it installed, and in PATH?)" ;;
  esac
}

scratch="$(mktemp -d)"
# What a script leaves behind is said on every way out, also after Ctrl-C: scripts define `leave EXITCODE`.
trap 'leaving=$?; leave "$leaving" || true; rm -rf "$scratch"; exit "$leaving"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
leave() { :; }

# ---- Code

# Sets `commit` to what is shipped; refuses to leave changes behind without a word.
find_commit() {
  local changes
  git rev-parse --git-dir >/dev/null 2>&1 || die "commits are shipped, and $PWD is no clone of a git repository"
  [ "$ref" ] || changes="$(git status --porcelain --untracked-files=normal)"
  [ -z "${changes:-}" ] ||
    die "commits are shipped, and these files are in none: $(cut -c4- <<<"$changes" | head -n 5 | tr '\n' ' ')- commit them, or ship the last commit without them: --ref=HEAD"
  commit="$(git rev-parse --verify --quiet --short=12 "${ref:-HEAD}^{commit}")" || die "there is no commit ${ref:-HEAD}"
}

# pack FILE: the commit as a tar file.
pack() { run git archive --format=tar.gz --output="$1" "$commit"; }

# ---- Jobs on hosts that are reached by ssh
#
# A script has `on first|all COMMAND` and `copy FILE`, which set `failure` and return an exit code, and says in `extras`
# what is installed.

seen=0  # bytes of the first host's log

host_sh() { echo "cd xl_flax/current && $(quote bash launch/host.sh "$@")"; }

install() {
  local file="$scratch/$commit.tar.gz" target="xl_flax/$commit"
  [ ! "$dry_run" ] || file="${TMPDIR:-/tmp}/$commit.tar.gz"
  pack "$file" || die "cannot pack $commit"
  copy "$file" || return
  on all "mkdir -p $target && tar -xzf $commit.tar.gz -C $target && ln -sfn $commit xl_flax/current && \
cd xl_flax/current && XL_FLAX_EXTRAS=$extras bash launch/host.sh setup"
}

start() { on all "$(host_sh start "$name" XL_FLAX_EXTRAS="$extras" "${environment[@]}" -- "${job[@]}")"; }

# Shows the first host's log, from where it was last seen, until the job ends there or the connection breaks.
follow() {
  if [ "$dry_run" ]; then
    on first "$(host_sh follow "$name" 0)"
    return
  fi
  on first "$(host_sh follow "$name" "$seen")" | tee "$scratch/log"
  seen=$((seen + $(wc -c <"$scratch/log")))
}

# Sets `outcome`: done, running, stopped (on request), again (to be started again), failed or unreachable.
ask_hosts() {
  local answer ended
  outcome="done"
  if [ "$dry_run" ]; then
    on all "$(host_sh state "$name")"
    return
  fi
  answer="$(on all "$(host_sh state "$name")" 2>/dev/null)" || {
    outcome=unreachable
    return
  }
  ended="$(sed -n 's/.* ended //p' <<<"$answer" | sort -n | uniq)"
  job_code="$(awk -v goes_on="^(0|$again|$lost)\$" '$0 !~ goes_on && $0 < 128' <<<"$ended" | head -n 1)"
  unfinished="$(grep -v ' ended 0$' <<<"$answer" | sort | tr '\n' ',' | sed 's/,$//; s/,/, /g' || true)"
  if [ "$job_code" ]; then outcome=failed
  elif grep -q ' running$' <<<"$answer"; then outcome=running
  elif grep -q ' stopped$' <<<"$answer"; then outcome=stopped
  elif [ "$unfinished" ] || [ ! "$answer" ]; then outcome=again
  fi
}

# ---- Cost

unit=chip

# cost NUMBER SECONDS WHAT: hours of so many units, and money when --price says what one costs.
cost() {
  LC_ALL=C awk -v n="$1" -v s="$2" -v what="$3" -v price="$price" -v unit="$unit" 'BEGIN {
    hours = n * s / 3600
    printf "cost: %s: %d %ss × %.2f h = %.1f %s hours", what, n, unit, s / 3600, hours, unit
    if (price != "") printf " × %s = %.2f", price, hours * price
    print price == "" ? " (--price=PRICE shows money)" : ""
  }' >&2
}
