#!/usr/bin/env bash
# Trains the pocket model from nothing in three runs: its encoder, its decoder, and that again on fuller audio. Started anew
# after a stop, it goes on where it was; a run whose adapter is there is done. Options are those of `headrouter-pl fit`, for
# all three: on two CPU cores
#
#   OMP_NUM_THREADS=1 scripts/train_pocket.sh --trainer.devices 2 --trainer.strategy ddp --trainer.precision bf16-mixed
#   headrouter-pl evaluate --weights outputs/pocket_weights
set -euo pipefail
options=("$@")

run() {
  local name=$1 last=outputs/$1/checkpoints/last.ckpt
  shift
  [ -e "outputs/$name/adapter/adapter_config.json" ] && return
  [ -e "$last" ] && set -- "$@" --ckpt_path "$last"
  headrouter-pl fit "$@" "${options[@]}"
}

run pocket_encoder --config configs/pocket_encoder.yaml
run pocket --config configs/pocket_lora.yaml
run pocket_scenes --config configs/pocket_lora.yaml --config configs/pocket_scenes.yaml
python "$(dirname "$0")/ship_pocket.py" outputs/pocket/adapter outputs/pocket_scenes/adapter --output outputs/pocket_weights
