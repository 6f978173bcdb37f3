#!/usr/bin/env bash
# Four settings × three seeds on the Bible: what TLM and contrast add to MLM (docs/parallel.md).
# SETTINGS=dual adds a fifth, the dual encoder of gin/runs/dual_bible.gin.
#
#   XL_FLAX_DATA_DIR=… bash launch/parallel.sh
#
# Gin flags count for all the runs. Runs go to runs/parallel/SETTING/SEED. What is finished is left alone and what was cut off goes on,
# so the same command can be started as often as it takes. SEEDS and SETTINGS choose some of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case " $* " in *" --help "*)
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p;}' launch/parallel.sh
  exit ;;
esac
source launch/environment.sh eval
gin=(--gin_file=gin/runs/parallel_bible.gin "$@")
folder="${PARALLEL_DIR:-runs/parallel}"
gin+=(--gin.CACHE_DIR="$folder/cache" --gin.VOCABULARY="$folder/vocabulary.model")
python -m xl_flax.vocab "${gin[@]}"

# Every setting reads 64 rows of 128 tokens a step.
run() {
  local setting="$1" seed="$2"
  local own=(--gin.MODEL_DIR="$folder/$setting/$seed" --gin.SEED="$seed")
  case "$setting" in
    mlm) own+=(--gin.TrainConfig.objectives='[@MaskedLM()]') ;;
    tlm) own+=(--gin.TrainConfig.objectives='[@MaskedLM(), @TranslationLM()]' --gin.BATCH_SIZE=32) ;;
    contrastive) own+=(--gin.TrainConfig.objectives='[@MaskedLM(), @Contrastive()]' --gin.BATCH_SIZE=32) ;;
    all) own+=(--gin.TrainConfig.objectives='[@MaskedLM(), @TranslationLM(), @Contrastive()]'
      --gin.BATCH_SIZE=32 --gin.TLM_BATCH_SIZE=16 --gin.CONTRASTIVE_BATCH_SIZE=16) ;;
    dual) own+=(--gin_file=gin/runs/dual_bible.gin) ;;
    *) echo "error: no setting $setting; there are mlm, tlm, contrastive, all and dual" >&2; exit 2 ;;
  esac
  echo "== $setting, seed $seed"
  python -m xl_flax.train "${gin[@]}" "${own[@]}"
  python -m xl_flax.evaluate "${gin[@]}" "${own[@]}" >"$folder/$setting/$seed/evaluation.txt"
}

for seed in ${SEEDS:-0 1 2}; do
  for setting in ${SETTINGS:-mlm tlm contrastive all}; do
    run "$setting" "$seed"
  done
done
shopt -s nullglob  # settings that were not trained are left out
report=("$folder"/{mlm,tlm,contrastive,all,dual}/ --pivot=eng --rows='setting,center' --columns='data,group'
  --group='seen=ces,deu,eus,fin,fra,mlg,rus,spa,tgl,vie,zho' --group=unseen= --where=similarity=cosine
  --data=bible='bible_*/validation' --data=tatoeba='tatoeba_*' --layer=best:bible)
for metric in p@1 p@1_unshared; do
  python -m xl_flax.report "${report[@]}" --where=metric="$metric"
done
python -m xl_flax.report "${report[@]}" --figures=layers --out="$folder"
