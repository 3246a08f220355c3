#!/usr/bin/env bash
# Trains one adapter by a config file of the CoT-NLI guide, as the guide's train.sh and run_training.sh did.
set -euo pipefail
# shellcheck source=scripts/wrapper.sh
source "$(dirname "${BASH_SOURCE[0]}")/wrapper.sh"

usage() {
  cat <<'END'
usage: scripts/run_training.sh [--config FILE] [--gpu N] [--no_wandb] [--docker] [--NAME VALUE ...] [-- OPTION ...]

  --config FILE          Python config file (default: the guide's default)
  --fallback-to-default  go on with the guide's default if FILE fails to load
  --gpu N, --gpu_id N    the GPU to train on (default: the config file's gpu_id)
  --out DIR              where the trial goes (default: the config file's output_dir)
  --no_wandb             no Weights & Biases
  --NAME VALUE           set a name of config files or recipes, such as --batch_size 8; also --NAME=VALUE
  --NAME, --no_NAME      set it to true, to false
  --docker               run in the image, which `docker build -t qlora-orchestrator .` makes; $IMAGE names another
  --                     what follows goes to `python -m trials.train` as it is, such as another recipe

Command line goes before config file. Paths are relative to the current folder; --docker sees nothing outside it.
HF_TOKEN and WANDB_API_KEY are taken from the environment, or from .env in the project's folder (see example.env).
END
}

how=native gpus=all config=default options=() settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --) shift && break ;;
  esac
  take_option "docker|fallback_to_default|no_.+" "$@"
  shift "$used"
  case $name in
    docker) how=docker ;;
    fallback_to_default) options+=(--fallback-to-default) ;;
    config) need_value && config=$value ;;
    out) need_value && options+=(--out "$value") ;;
    gpu | gpu_id) need_gpu && gpus=device=$value ;;
    no_wandb) settings+=(use_wandb=false) ;;
    no_*) settings+=("${name#no_}=false") ;;
    *) if [ "$given" = yes ]; then settings+=("$name=$value"); else settings+=("$name=true"); fi ;;
  esac
done

if [ "$gpus" != all ]; then
  # The image sees one GPU then, which is its first.
  if [ $how = docker ]; then settings+=(gpu_id=0); else settings+=("gpu_id=${gpus#device=}"); fi
fi
[ ${#settings[@]} -eq 0 ] || options+=(--set "${settings[@]}")
run_project $how "$gpus" trials.train "$@" --config "$config" "${options[@]}"
