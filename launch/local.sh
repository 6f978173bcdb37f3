#!/usr/bin/env bash
# Trains and evaluates on this machine: vocabulary, cache, training, evaluation.
#
#   bash launch/local.sh                                      # embedded synthetic languages
#   bash launch/local.sh --gin_file=gin/runs/bible.gin        # real text under XL_FLAX_DATA_DIR
#   bash launch/local.sh --gin.MODEL_DIR=runs/mine --gin.STEPS=500
#
# Started again with the same flags, it goes on where it was. On a GPU: XL_FLAX_EXTRAS=gpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case " $* " in *" --help "*)
  sed -n '2,/^set/s/^# \{0,1\}//p' launch/local.sh
  exit ;;
esac
flags=("$@")
case " $* " in *" --gin_file="*) ;; *) flags=(--gin_file=gin/runs/quickstart.gin "$@") ;; esac

source launch/environment.sh eval
python -m xl_flax.vocab "${flags[@]}"
python -m xl_flax.train "${flags[@]}"
python -m xl_flax.evaluate "${flags[@]}"
