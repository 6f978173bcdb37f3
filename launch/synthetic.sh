#!/usr/bin/env bash
# Five ways to learn five synthetic languages × three seeds (docs/parallel.md).
#
#   bash launch/synthetic.sh
#
# Gin flags count for all the runs. Runs go to runs/synthetic/SETTING/SEED. What is finished is left alone and what was cut off goes on,
# so the same command can be started as often as it takes. SEEDS chooses some of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case " $* " in *" --help "*)
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' launch/synthetic.sh
  exit ;;
esac
folder="${SYNTHETIC_DIR:-runs/synthetic}"
run() {
  local setting="$1" seed="$2" file="$1_synthetic"
  local own=(--gin.MODEL_DIR="$folder/$setting/$seed" --gin.SEED="$seed")
  own+=(--gin.CACHE_DIR="$folder/cache" --gin.VOCABULARY="$folder/vocabulary.model")
  case "$setting" in
    mlm) file=quickstart ;;
    labse) own+=(--gin.InitFrom.checkpoint="$folder/tlm/$seed") ;;
    ppa) own+=(--gin.InitFrom.checkpoint="$folder/mlm/$seed") ;;
  esac
  echo "== $setting, seed $seed"
  bash launch/local.sh --gin_file="gin/runs/$file.gin" "${own[@]}" "${@:3}"
}

for seed in ${SEEDS:-0 1 2}; do
  for setting in mlm tlm labse ppa infoxlm; do
    run "$setting" "$seed" "$@"
  done
done

source launch/environment.sh eval
# Only beta has translations into alpha in training; anchored has words of alpha, the others neither.
report=("$folder"/{mlm,tlm,labse,ppa,infoxlm} --pivot=alpha --rows=setting --columns='metric,group'
  --group=beta=beta --group=anchored=anchored --group='gamma,inverted=gamma,inverted'
  --where=similarity=cosine --layer=best:synthetic_multiway/validation)
python -m xl_flax.report "${report[@]}" --where=data=synthetic_core/test --where=metric=p@1 --where=metric=p@1_unshared
python -m xl_flax.report "${report[@]}" --figures=layers --out="$folder"
