#!/usr/bin/env bash
# Zero-shot transfer: fine-tunes a checkpoint on English and tests it in all languages (docs/transfer.md).
#
#   XL_FLAX_DATA_DIR=… bash launch/transfer.sh runs/bible
#
# Six tasks, three seeds, and beside them the same encoder untrained; SIB-200 also with the training text of
# all languages. Gin flags behind the checkpoint count for all the runs. Runs go to
# runs/transfer/TASK/SETTING/SEED. What is finished is left alone and what was cut off goes on, so the same
# command can be started as often as it takes. TASKS, SETTINGS and SEEDS choose some of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case " $* " in *" --help "*)
  sed -n '2,/^set/s/^# \{0,1\}//p' launch/transfer.sh
  exit ;;
esac
checkpoint="${1:?error: name a checkpoint, as in: bash launch/transfer.sh runs/bible}"
shift
source launch/environment.sh eval
folder="${TRANSFER_DIR:-runs/transfer}"

for task in ${TASKS:-sib200 ud_pos panx snli ud_trees questions}; do
  for setting in ${SETTINGS:-pretrained untrained translated}; do
    own=(--gin_file="gin/runs/finetune_$task.gin" --gin.CHECKPOINT="$checkpoint")
    own+=(--gin.MODEL_DIR="$folder/$task/$setting" --gin.CACHE_DIR="$folder/cache")
    own+=(--gin.SEEDS="[${SEEDS:-0, 1, 2}]" "$@")
    case "$setting" in
      pretrained) ;;
      untrained) own+=(--gin.TrainConfig.init_from=None) ;;
      translated)
        [ "$task" = sib200 ] || continue
        own+=(--gin.MIXTURE=sib200_topics) ;;
      *) echo "error: no setting $setting; there are pretrained, untrained and translated" >&2; exit 2 ;;
    esac
    echo "== $task, $setting"
    python -m xl_flax.train "${own[@]}"
    python -m xl_flax.evaluate "${own[@]}" --checkpoint=best >"$folder/$task/$setting/evaluation.txt"
  done
done
python -m xl_flax.report "$folder"/*/*/ --setting='.*?([^/]+)/\d+' --figures=heatmap --format=md,html --out="$folder"
