#!/usr/bin/env bash
# Judges a model on a file of rows, or lets it answer a prompt, as the CoT-NLI guide's run_inference.sh did.
set -euo pipefail
# shellcheck source=scripts/wrapper.sh
source "$(dirname "${BASH_SOURCE[0]}")/wrapper.sh"

usage() {
  cat <<'END'
usage: scripts/run_inference.sh --model DIR (--data FILE | --prompt TEXT) [--gpu N] [--rows N] [--out FILE] [--docker]
                                [-- OPTION ...]

  --model DIR    an adapter, a trial's or a search's folder with one in it, a model, or a model's name on the hub
  --data FILE    rows to answer; their labels are judged, and everything is written to --out
  --prompt TEXT  one prompt to answer, in place of --data
  --gpu N        the GPU to run on (default: all that are visible)
  --rows N       at most so many rows, from the top
  --out FILE     default: results/<model>-<data>-<date>-<time>.json
  --docker       run in the image, which `docker build -t qlora-orchestrator .` makes; $IMAGE names another
  --             what follows goes to `python -m trials.evaluate` or `python -m trials.generate` as it is

Paths are relative to the current folder; --docker sees nothing outside it.
HF_TOKEN is taken from the environment, or from .env in the project's folder (see example.env).
END
}

how=native gpus=all model="" data="" prompt="" rows="" out=""
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit ;;
    --) shift && break ;;
  esac
  take_option docker "$@"
  shift "$used"
  case $name in
    docker) how=docker ;;
    model | data | prompt | rows | out) need_value && declare "$name=$value" ;;
    gpu | gpu_id) need_gpu && gpus=device=$value ;;
    *) fail "--$name is no option. See --help." ;;
  esac
done
[ -n "$model" ] || fail "no --model. See --help."
if [ -n "$data" ] && [ -n "$prompt" ]; then fail "--data and --prompt: give one of them. See --help."; fi
[ -n "$data$prompt" ] || fail "neither --data nor --prompt. See --help."

name=$(basename "$model")
for folder in adapter export; do # as a trial and a search leave them
  [ -f "$model/adapter_config.json" ] || [ ! -f "$model/$folder/adapter_config.json" ] || model=$model/$folder
done
if [ $how = native ] && [ "$gpus" != all ]; then export CUDA_VISIBLE_DEVICES=${gpus#device=}; fi

if [ -n "$prompt" ]; then
  [ -z "$rows$out" ] || fail "--rows and --out go with --data, not with --prompt. See --help."
  run_project $how "$gpus" trials.generate "$model" --prompt "$prompt" "$@"
fi
if [ -z "$out" ]; then
  mkdir -p results
  data_name=$(basename "${data%%[*}")
  out=results/$name-${data_name%.*}-$(date +%Y%m%d-%H%M%S).json
fi
run_project $how "$gpus" trials.evaluate "$model" --data "$data" --labels --json "$out" ${rows:+--rows "$rows"} "$@"
